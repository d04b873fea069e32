"""The class of Qwen2-Audio, where the documentation of align-anything has it."""

from align_anything.models.families.qwen2_audio import AccustomedQwen2AudioModel

__all__ = ['AccustomedQwen2AudioModel']
