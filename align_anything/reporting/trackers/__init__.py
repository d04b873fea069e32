"""Experiment trackers, one file each; their packages are imported only when asked for."""
