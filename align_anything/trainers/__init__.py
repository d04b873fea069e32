"""Runs: the table of pairs, one leaf per pair and algorithm, and what they share: `launch`, `runs` and `loops`."""
