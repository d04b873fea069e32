"""The class of LLaVA, where the documentation of align-anything has it."""

from align_anything.models.families.llava import AccustomedLlavaModel

__all__ = ['AccustomedLlavaModel']
