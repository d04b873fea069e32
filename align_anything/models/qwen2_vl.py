"""The class of Qwen2-VL, where the documentation of align-anything has it."""

from align_anything.models.families.qwen2_vl import AccustomedQwen2VLModel

__all__ = ['AccustomedQwen2VLModel']
