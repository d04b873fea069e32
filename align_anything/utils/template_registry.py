"""`register_template`, where the documentation of align-anything has it."""

from align_anything.datasets.formatters.base import register_template

__all__ = ['register_template']
