"""Qwen2 and Qwen2.5: the default rules."""

from __future__ import annotations

from transformers import Qwen2ForCausalLM

from align_anything.models.family import FamilySpec


class AccustomedQwen2Model(Qwen2ForCausalLM):
    """Qwen2 with a language-model head."""


MODEL, SPEC = AccustomedQwen2Model, FamilySpec
