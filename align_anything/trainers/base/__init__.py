"""The loops, the wiring of one run, and what it writes and shows."""
