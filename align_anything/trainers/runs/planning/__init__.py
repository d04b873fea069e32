"""Runs on paper: which settings fit some devices, and how long a step would take."""
