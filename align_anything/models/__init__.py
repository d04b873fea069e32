"""Checkpoints as models, and model families as the rules that turn conversations into their tokens."""
