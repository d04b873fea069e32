"""Gemma 3 with its vision tower: an image's tokens see each other in both directions."""

from __future__ import annotations

from transformers import Gemma3ForConditionalGeneration

from align_anything.models.families.llava import COMPONENTS
from align_anything.models.family import FamilySpec


class AccustomedGemma3Model(Gemma3ForConditionalGeneration):
    """Gemma 3 with a language-model head."""


class Gemma3Spec(FamilySpec):
    """Token types reach the model (its training forward demands them), as the attention within an image needs them."""

    bidirectional_media = True
    component_prefixes = COMPONENTS


MODEL, SPEC = AccustomedGemma3Model, Gemma3Spec
