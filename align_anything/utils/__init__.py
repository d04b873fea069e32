"""Holds nothing but paths that the documentation of align-anything names."""
