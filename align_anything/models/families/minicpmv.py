"""MiniCPM-V: images in slices of any shape; the class comes with the checkpoint."""

from __future__ import annotations

from align_anything.models.minicpm import FEATURE_TOKEN, IMAGE_PLACEHOLDER, AccustomedMiniCPM, MiniCPMEncoder
from align_anything.models.own_code import OwnCodeSpec


class AccustomedMiniCPMVModel(AccustomedMiniCPM):
    """MiniCPM-V with a language-model head."""


class MiniCPMVSpec(OwnCodeSpec):
    """Images, numbered over the conversation."""

    encoder_class = MiniCPMEncoder
    placeholders = {'image': IMAGE_PLACEHOLDER}
    feature_token = FEATURE_TOKEN
    component_prefixes = {'vision_tower': ('vpm',), 'mm_proj': ('resampler',), 'language_model': ('llm',)}


MODEL, SPEC = AccustomedMiniCPMVModel, MiniCPMVSpec
