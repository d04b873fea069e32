"""Qwen3 with mixture-of-experts layers: the default rules."""

from __future__ import annotations

from transformers import Qwen3MoeForCausalLM

from align_anything.models.family import FamilySpec


class AccustomedQwen3MoeModel(Qwen3MoeForCausalLM):
    """Qwen3Moe with a language-model head."""


MODEL, SPEC = AccustomedQwen3MoeModel, FamilySpec
