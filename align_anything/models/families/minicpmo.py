"""MiniCPM-o: images and audio in, text out; the class comes with the checkpoint, its speech is left out."""

from __future__ import annotations

from align_anything.models.minicpm import (
    AUDIO_PLACEHOLDER,
    FEATURE_TOKEN,
    IMAGE_PLACEHOLDER,
    AccustomedMiniCPM,
    MiniCPMEncoder,
)
from align_anything.models.own_code import OwnCodeSpec


class AccustomedMiniCPMOModel(AccustomedMiniCPM):
    """MiniCPM-o with a language-model head."""


class MiniCPMOSpec(OwnCodeSpec):
    """Images, numbered over the conversation, and audio clips."""

    encoder_class = MiniCPMEncoder
    placeholders = {'image': IMAGE_PLACEHOLDER, 'audio': AUDIO_PLACEHOLDER}
    feature_token = FEATURE_TOKEN
    component_prefixes = {
        'vision_tower': ('vpm',),
        'audio_tower': ('apm',),
        'mm_proj': ('resampler', 'audio_projection_layer'),
        'language_model': ('llm',),
    }


MODEL, SPEC = AccustomedMiniCPMOModel, MiniCPMOSpec
LOADING = {'init_tts': False}
