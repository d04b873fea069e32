"""What a run tells: console, metrics, trackers, pages, plots and cards."""
