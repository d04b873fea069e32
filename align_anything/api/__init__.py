"""What the commands do, from Python: `align_anything.train`, `generate` and `load_policy`."""
