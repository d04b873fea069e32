"""The class of Llama 3.2 Vision, where the documentation of align-anything has it."""

from align_anything.models.families.mllama import AccustomedMllamaModel

__all__ = ['AccustomedMllamaModel']
