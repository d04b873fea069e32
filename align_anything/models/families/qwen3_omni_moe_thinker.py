"""The thinker of Qwen3-Omni: images, videos and audio beside text, images in several layers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen3OmniMoeThinkerForConditionalGeneration

from align_anything.models.encoding import merge_media
from align_anything.models.omni import COMPONENTS, OmniBody, OmniSpec
from align_anything.models.tower_calls import AudioCalls, Features, Forward, Item, PatchCalls, TowerCalls


class AccustomedQwen3OmniMoeThinkerModel(Qwen3OmniMoeThinkerForConditionalGeneration, OmniBody):
    """Qwen3-Omni's thinker with a language-model head."""

    def by_layer(self, embeds: Tensor, seen: list[tuple[Tensor, Any]]) -> dict[str, Any]:
        """Returns the features that the first layers add to visual tokens, in their order, one tensor a layer."""
        everywhere = torch.stack([positions for positions, _ in seen]).any(0)
        layers = []
        for number in range(len(seen[0][1].deepstack_features)):
            joint = embeds.new_zeros((int(everywhere.sum()), embeds.shape[-1]))
            for positions, visuals in seen:
                features = visuals.deepstack_features[number]
                features = torch.cat(features) if isinstance(features, (tuple, list)) else features
                joint = joint.masked_scatter(positions[everywhere][:, None], features.to(embeds.dtype))
            layers.append(joint)
        return {'visual_pos_masks': everywhere, 'deepstack_visual_embeds': layers}

    def get_audio_features(
        self,
        input_features: Tensor,
        feature_attention_mask: Tensor | None = None,
        audio_feature_lengths: Tensor | None = None,
        **inputs: Any,
    ) -> Any:
        """Returns the tower's output for audio clips `(audio, bins, frames)`: `last_hidden_state` `(tokens, size)`.

        The tower pads all windows to the longest one of its call, and its convolutions read what is there: among
        audio clips shorter than a window (a second), what comes of one would hang on the others. Silence as long as a
        window goes along with such audio clips.
        """
        window = 2 * self.audio_tower.n_window
        if feature_attention_mask is None or int(feature_attention_mask.sum(-1).max()) >= window:
            return super().get_audio_features(input_features, feature_attention_mask, audio_feature_lengths, **inputs)
        silence = {
            'features': input_features.new_zeros((1, input_features.shape[1], window)),
            'mask': feature_attention_mask.new_ones((1, window)),
        }
        joined = merge_media([{'features': input_features, 'mask': feature_attention_mask}, silence])
        outputs = super().get_audio_features(joined['features'], joined['mask'], **inputs)
        outputs.last_hidden_state = outputs.last_hidden_state[: -_tokens(window, window)]
        return outputs


class WindowCalls(AudioCalls):
    """Calls in which short audio clips are read as beside a longer one, whichever of them are there."""

    def __init__(self, window: int) -> None:
        super().__init__(partial(_tokens, window=window))
        self.window = window

    def encode(self, tower: nn.Module, forward: Forward, items: Sequence[Item], others: Any) -> list[Features]:
        """Runs the tower once, silence as long as a window beside the items, and returns the features of each item."""
        first = items[0]
        silence = first['input_features'].new_zeros((len(first['input_features']), self.window))
        beside = {'input_features': silence, 'feature_lens': torch.full_like(first['feature_lens'], self.window)}
        return super().encode(tower, forward, [*items, beside], others)[:-1]


class Qwen3OmniMoeThinkerSpec(OmniSpec):
    """Temporal positions keep their fractions; several tower layers have mergers of their own."""

    integer_positions = False
    shared_marks = False
    component_prefixes = {**COMPONENTS, 'mm_proj': ('visual.merger', 'visual.merger_list')}

    def tower_calls(self, component: str) -> TowerCalls:
        """Returns how calls of a tower are split."""
        if component != 'audio_tower':
            return PatchCalls('merger_list')
        return WindowCalls(2 * self.config.audio_config.n_window)


def _tokens(frames: int, window: int) -> int:
    """The tokens of an audio clip: its windows pass three convolutions of stride two each on their own."""
    lengths = [window] * (frames // window) + ([frames % window] if frames % window else [])
    return sum((((length - 1) // 2) // 2) // 2 + 1 for length in lengths)


MODEL, SPEC = AccustomedQwen3OmniMoeThinkerModel, Qwen3OmniMoeThinkerSpec
