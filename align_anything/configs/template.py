"""`ChatTemplate`, where the documentation of align-anything has it."""

from align_anything.datasets.chat_template import ChatTemplate

__all__ = ['ChatTemplate']
