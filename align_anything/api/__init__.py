"""What the commands do, from Python: `align_anything.train`, `generate`, `evaluate` and `load_policy`."""
