"""The benchmarks of docs/benchmarks.md: `python -m scripts.bench`. Every target is a ratio of two sides of one run."""
