"""Runs: the shared wiring in `base`, and one leaf per modality pair and algorithm."""
