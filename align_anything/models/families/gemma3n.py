"""Gemma 3n: images and audio; an image goes through a network of timm, which has to be installed."""

from __future__ import annotations

from torch import nn
from transformers import Gemma3nForConditionalGeneration

from align_anything.models.family import FamilySpec

COMPONENTS = {
    'vision_tower': ('model.vision_tower',),
    'audio_tower': ('model.audio_tower',),
    'mm_proj': ('model.embed_vision', 'model.embed_audio'),
    'language_model': ('model.language_model', 'lm_head'),
}


class AccustomedGemma3nModel(Gemma3nForConditionalGeneration):
    """Gemma 3n with a language-model head."""


class Gemma3nSpec(FamilySpec):
    """The default rules with the components named."""

    component_prefixes = COMPONENTS

    def external_parameters(self, model: nn.Module) -> list[tuple[nn.Module, nn.Parameter]]:
        """Returns what each layer reads of the weights that mix its streams."""
        return [
            (layer, weight)
            for layer in model.model.language_model.layers
            for weight in (
                layer.altup.prediction_coefs.weight,
                layer.altup.correction_coefs.weight,
                layer.altup.correct_output_scale,
            )
        ]


MODEL, SPEC = AccustomedGemma3nModel, Gemma3nSpec
