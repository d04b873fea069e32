"""The class of LLaVA-NeXT, where the documentation of align-anything has it."""

from align_anything.models.families.llava_next import AccustomedLlavaNextModel

__all__ = ['AccustomedLlavaNextModel']
