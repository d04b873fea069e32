"""`ChatTemplate`, where the documentation of align-anything has it."""

from align_anything.trainers.runs.chat_text import ChatTemplate

__all__ = ['ChatTemplate']
