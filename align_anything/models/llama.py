"""The class of LLaMA, where the documentation of align-anything has it."""

from align_anything.models.families.llama import AccustomedLlamaModel

__all__ = ['AccustomedLlamaModel']
