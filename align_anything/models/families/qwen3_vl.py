"""Qwen3-VL: multimodal rotary positions, videos as frames between timestamps in text."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Qwen3VLForConditionalGeneration

from align_anything.models.mrope import MRopeSpec
from align_anything.models.tower_calls import PatchCalls, TowerCalls


class AccustomedQwen3VLModel(Qwen3VLForConditionalGeneration):
    """Qwen3-VL with a language-model head."""


class Qwen3VLSpec(MRopeSpec):
    """Every frame of a video is a stretch of its own; several tower layers have mergers of their own."""

    component_prefixes = {
        **MRopeSpec.component_prefixes,
        'mm_proj': ('model.visual.merger', 'model.visual.deepstack_merger_list'),
    }

    def tower_calls(self, component: str) -> TowerCalls:
        """Returns how calls of the vision tower are split, the features of its inner layers among them."""
        return PatchCalls('deepstack_merger_list')

    def video_grids(self, grids: Tensor) -> Tensor:
        """Returns one grid per frame."""
        frames = torch.repeat_interleave(grids, grids[:, 0], dim=0)
        frames[:, 0] = 1
        return frames


MODEL, SPEC = AccustomedQwen3VLModel, Qwen3VLSpec
