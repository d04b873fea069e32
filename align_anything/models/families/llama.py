"""Llama: the default rules."""

from __future__ import annotations

from transformers import LlamaForCausalLM

from align_anything.models.family import FamilySpec


class AccustomedLlamaModel(LlamaForCausalLM):
    """Llama with a language-model head."""


MODEL, SPEC = AccustomedLlamaModel, FamilySpec
