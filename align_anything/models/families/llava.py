"""LLaVA-1.5: one fixed number of tokens per image."""

from __future__ import annotations

from transformers import LlavaForConditionalGeneration

from align_anything.models.family import FamilySpec

COMPONENTS = {
    'vision_tower': ('model.vision_tower',),
    'mm_proj': ('model.multi_modal_projector',),
    'language_model': ('model.language_model', 'lm_head'),
}


class AccustomedLlavaModel(LlavaForConditionalGeneration):
    """LLaVA with a language-model head."""


class LlavaSpec(FamilySpec):
    """The default rules with the components named."""

    component_prefixes = COMPONENTS


MODEL, SPEC = AccustomedLlavaModel, LlavaSpec
