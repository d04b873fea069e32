"""Benchmarks of a checkpoint: its answers, numbers for them, intervals, and how two checkpoints differ."""
