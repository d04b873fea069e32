"""LLaVA-NeXT: images in patches, their number by the image's shape."""

from __future__ import annotations

from transformers import LlavaNextForConditionalGeneration

from align_anything.models.families.llava import COMPONENTS
from align_anything.models.family import FamilySpec


class AccustomedLlavaNextModel(LlavaNextForConditionalGeneration):
    """LLaVA-NeXT with a language-model head."""


class LlavaNextSpec(FamilySpec):
    """The default rules with the components named; patches past an image's own are padding the model drops."""

    component_prefixes = {**COMPONENTS, 'mm_proj': ('model.multi_modal_projector', 'model.image_newline')}


MODEL, SPEC = AccustomedLlavaNextModel, LlavaNextSpec
