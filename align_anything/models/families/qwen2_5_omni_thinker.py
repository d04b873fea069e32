"""The thinker of Qwen2.5-Omni: images, videos and audio beside text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2_5OmniThinkerForConditionalGeneration

from align_anything.models.body import BodyWithin
from align_anything.models.omni import COMPONENTS, OmniSpec, put
from align_anything.models.tower_calls import AudioCalls, PatchCalls, TowerCalls


class AccustomedQwen2_5OmniThinkerModel(Qwen2_5OmniThinkerForConditionalGeneration, BodyWithin):
    """Qwen2.5-Omni's thinker with a language-model head."""

    def body(
        self,
        input_ids: Tensor,
        *,
        input_features: Tensor | None = None,
        feature_attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        video_second_per_grid: Tensor | None = None,
        **inputs: Any,
    ) -> Any:
        """Returns the text model's output, its `last_hidden_state` `(rows, length, size)`.

        `video_second_per_grid` is in the positions already.
        """
        embeds = self.get_input_embeddings()(input_ids)
        if input_features is not None:
            audio_clips = self.get_audio_features(input_features, feature_attention_mask, return_dict=True)
            embeds = put(embeds, input_ids == self.config.audio_token_id, audio_clips.last_hidden_state)
        if pixel_values is not None:
            images = self.get_image_features(pixel_values, image_grid_thw, return_dict=True).pooler_output
            embeds = put(embeds, input_ids == self.config.image_token_id, torch.cat(images))
        if pixel_values_videos is not None:
            videos = self.get_video_features(pixel_values_videos, video_grid_thw, return_dict=True).pooler_output
            embeds = put(embeds, input_ids == self.config.video_token_id, torch.cat(videos))
        return self.model(inputs_embeds=embeds, **inputs)


class Qwen2_5OmniThinkerSpec(OmniSpec):
    """The rules of the Omni thinkers with the components named."""

    component_prefixes = COMPONENTS

    def tower_calls(self, component: str) -> TowerCalls:
        """Returns how calls of a tower are split; inside the vision tower, patches are sorted by window."""
        return AudioCalls(_tokens) if component == 'audio_tower' else PatchCalls(windows=True)


def _tokens(frames: int) -> int:
    """The tokens of an audio clip: one convolution and one pooling, each of stride two."""
    return ((frames - 1) // 2 - 1) // 2 + 1


MODEL, SPEC = AccustomedQwen2_5OmniThinkerModel, Qwen2_5OmniThinkerSpec
