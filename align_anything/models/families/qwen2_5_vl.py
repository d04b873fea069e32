"""Qwen2.5-VL: multimodal rotary positions that follow the seconds of a video."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from align_anything.models.mrope import MRopeSpec
from align_anything.models.tower_calls import PatchCalls, TowerCalls


class AccustomedQwen2_5_VLModel(Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL with a language-model head."""


class Qwen2_5_VLSpec(MRopeSpec):
    """Frames stand as far apart as the time between them."""

    def tower_calls(self, component: str) -> TowerCalls:
        """Returns how calls of the vision tower are split; inside, its patches are sorted by window."""
        return PatchCalls(windows=True)

    def intervals(self, media: Mapping[str, Any]) -> Tensor | None:
        """Returns tokens per second times the seconds between frames, for each video."""
        seconds = media.get('second_per_grid_ts')
        if seconds is None and 'video_grid_thw' in media:
            seconds = media['video_grid_thw'].new_ones(len(media['video_grid_thw']))
        return None if seconds is None else seconds * self.config.vision_config.tokens_per_second


MODEL, SPEC = AccustomedQwen2_5_VLModel, Qwen2_5_VLSpec
