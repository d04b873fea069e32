"""Makes transformers know composed models, so that their checkpoints load by its Auto classes."""

from __future__ import annotations

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)

from align_anything.models.composed.configuration_composed import ComposedConfig
from align_anything.models.composed.modeling_composed import ComposedForConditionalGeneration, ComposedModel
from align_anything.models.composed.processing_composed import ComposedProcessor


def register() -> None:
    """Registers configuration, models and processor. Doing so again changes nothing."""
    AutoConfig.register('composed', ComposedConfig, exist_ok=True)
    AutoModel.register(ComposedConfig, ComposedModel, exist_ok=True)
    for auto in (AutoModelForImageTextToText, AutoModelForMultimodalLM):
        auto.register(ComposedConfig, ComposedForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(ComposedConfig, ComposedProcessor, exist_ok=True)
