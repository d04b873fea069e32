"""Align any-to-any models: one algorithm, any modality."""

__version__ = '0.1.0'
