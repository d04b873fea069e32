"""Qwen3: the default rules. Its template drops the thoughts of earlier turns, so answers are sequences of their own."""

from __future__ import annotations

from transformers import Qwen3ForCausalLM

from align_anything.models.family import FamilySpec


class AccustomedQwen3Model(Qwen3ForCausalLM):
    """Qwen3 with a language-model head."""


MODEL, SPEC = AccustomedQwen3Model, FamilySpec
