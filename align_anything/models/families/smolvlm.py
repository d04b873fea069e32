"""SmolVLM: as Idefics3, and videos as images between timestamps in text."""

from __future__ import annotations

from typing import ClassVar

from transformers import SmolVLMForConditionalGeneration

from align_anything.models.encoding import RunEncoder
from align_anything.models.family import FamilySpec


class AccustomedSmolVLMModel(SmolVLMForConditionalGeneration):
    """SmolVLM with a language-model head."""


class SmolVLMEncoder(RunEncoder):
    """Gives videos calls of their own: the processor has one name for the pixels of images and of videos."""

    videos_apart: ClassVar[bool] = True


class SmolVLMSpec(FamilySpec):
    """The default rules with the components named."""

    encoder_class = SmolVLMEncoder
    component_prefixes = {
        'vision_tower': ('model.vision_model',),
        'mm_proj': ('model.connector',),
        'language_model': ('model.text_model', 'lm_head'),
    }


MODEL, SPEC = AccustomedSmolVLMModel, SmolVLMSpec
