"""LLaVA-NeXT-Video: images as LLaVA-NeXT takes them, videos frame by frame, pooled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import LlavaNextVideoForConditionalGeneration

from align_anything.models.encoding import RunEncoder
from align_anything.models.families.llava_next import LlavaNextSpec


class AccustomedLlavaNextVideoModel(LlavaNextVideoForConditionalGeneration):
    """LLaVA-NeXT-Video with a language-model head."""


class LlavaNextVideoEncoder(RunEncoder):
    """Hands videos over as frames, so that videos of unequal length can share a batch."""

    def tidied(self, outputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the outputs with every frame as a video of its own: the model looks at each frame alone."""
        if 'pixel_values_videos' not in outputs:
            return outputs
        return {**outputs, 'pixel_values_videos': outputs['pixel_values_videos'].flatten(0, 1)[:, None]}


class LlavaNextVideoSpec(LlavaNextSpec):
    """The rules of LLaVA-NeXT, and videos of any length."""

    encoder_class = LlavaNextVideoEncoder


MODEL, SPEC = AccustomedLlavaNextVideoModel, LlavaNextVideoSpec
