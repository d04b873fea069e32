"""Qwen2-VL: multimodal rotary positions."""

from __future__ import annotations

from transformers import Qwen2VLForConditionalGeneration

from align_anything.models.mrope import MRopeSpec


class AccustomedQwen2VLModel(Qwen2VLForConditionalGeneration):
    """Qwen2-VL with a language-model head."""


MODEL, SPEC = AccustomedQwen2VLModel, MRopeSpec
