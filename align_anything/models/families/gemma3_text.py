"""Gemma 3 without a vision tower: the default rules."""

from __future__ import annotations

from transformers import Gemma3ForCausalLM

from align_anything.models.family import FamilySpec


class AccustomedGemma3TextModel(Gemma3ForCausalLM):
    """Gemma3Text with a language-model head."""


MODEL, SPEC = AccustomedGemma3TextModel, FamilySpec
