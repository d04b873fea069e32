"""`BaseFormatter`, where the documentation of align-anything has it."""

from align_anything.datasets.formatters.base import BaseFormatter

__all__ = ['BaseFormatter']
