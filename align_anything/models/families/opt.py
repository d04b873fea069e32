"""OPT: the default rules. Its learned positions restart in packed rows, since they are handed over."""

from __future__ import annotations

from transformers import OPTForCausalLM

from align_anything.models.family import FamilySpec


class AccustomedOPTModel(OPTForCausalLM):
    """OPT with a language-model head."""


MODEL, SPEC = AccustomedOPTModel, FamilySpec
