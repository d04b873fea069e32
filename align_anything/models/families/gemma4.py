"""Gemma 4: images, videos and audio; the larger ones read an image in both directions, in some layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import Gemma4ForConditionalGeneration, Gemma4Model

from align_anything.core.types import Conversation, Message
from align_anything.models.encoding import RunEncoder, merge_media
from align_anything.models.families.gemma3n import COMPONENTS
from align_anything.models.family import FamilySpec
from align_anything.models.rendering import Run, TrainOn, media_of
from align_anything.models.tower_calls import Features, Item, TowerCalls

COUNTS = ('num_soft_tokens_per_image', 'num_soft_tokens_per_video')


class AccustomedGemma4Model(Gemma4ForConditionalGeneration):
    """Gemma 4 with a language-model head."""


class AccustomedGemma4Body(Gemma4Model):
    """Tells the tower how many frames there are, which transformers' forward pass takes but does not hand on."""

    def forward(
        self,
        *args: Any,
        pixel_values: Tensor | None = None,
        image_position_ids: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        video_position_ids: Tensor | None = None,
        **inputs: Any,
    ) -> Any:
        """Returns the text model's output; without videos it is transformers' own forward pass."""
        inputs.pop('num_frames_per_video', None)
        if pixel_values_videos is None:
            return super().forward(*args, pixel_values=pixel_values, image_position_ids=image_position_ids, **inputs)
        # All videos as one: their features are put end to end afterwards.
        frames = torch.tensor([len(pixel_values_videos)])
        videos = self.get_video_features(pixel_values_videos, video_position_ids, frames, return_dict=True)
        outputs = {'video': videos}
        if pixel_values is not None:
            outputs['image'] = self.get_image_features(pixel_values, image_position_ids, return_dict=True)
        return super().forward(*args, **{**inputs, 'mm_encoder_outputs': outputs})


class Gemma4Encoder(RunEncoder):
    """Leaves out what the processor only counted with."""

    def tidied(self, outputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the outputs that the model takes."""
        return {name: value for name, value in outputs.items() if name not in COUNTS}


class ImageCalls(TowerCalls):
    """Calls with one row for each image or frame; the output has as many rows as there are tokens."""

    def __init__(self, pooling: int) -> None:
        """`pooling` is the number of patches that make one token."""
        super().__init__()
        self.pooling = pooling

    def lengths(self, items: Sequence[Item]) -> list[int]:
        """Returns the tokens of each image; patches of padding have none."""
        return [int((item['pixel_position_ids'] != -1).all(-1).sum()) // self.pooling for item in items]


class PaddedAudioCalls(TowerCalls):
    """Calls with one row for each audio clip, padded to the longest. Kept is what a clip gives without padding."""

    def items(self, tensors: Mapping[str, Tensor]) -> list[Item]:
        """Returns the items of a call: `input_features` `(1, frames, bins)` and `attention_mask` `(1, frames)`."""
        frames = tensors['attention_mask'].sum(-1).tolist()
        return [
            {name: part[:, :number] for name, part in item.items()}
            for item, number in zip(super().items(tensors), frames, strict=True)
        ]

    def joined(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """Returns the arguments of one call, or the features of several items as one, padded with zeros."""
        return merge_media(items)

    def split(self, features: Features, items: Sequence[Item]) -> list[Features]:
        """Returns the features of each audio clip without padding."""
        tokens = features['attention_mask'].sum(-1).tolist()
        return [
            {name: part[:, :number] for name, part in item.items()}
            for item, number in zip(super().split(features, items), tokens, strict=True)
        ]


class Gemma4Spec(FamilySpec):
    """The default rules with the components named; the audio tracks of a turn's videos stand at its end."""

    encoder_class = Gemma4Encoder
    reads_audio_in_video = True
    component_prefixes = COMPONENTS

    def render(
        self, conversation: Conversation, train_on: TrainOn = 'all_assistant', start: int = 0
    ) -> list[list[Run]]:
        """Returns sequences of runs with their loss weights, before tokenisation; turns before `start` are prompt."""
        return super().render([_with_tracks(message) for message in conversation], train_on, start)

    def render_prompt(self, messages: Conversation) -> Run:
        """Returns the one run that generation starts from, before tokenisation."""
        return super().render_prompt([_with_tracks(message) for message in messages])

    def tower_calls(self, component: str) -> TowerCalls:
        """Returns how calls of a tower are split."""
        if component == 'audio_tower':
            return PaddedAudioCalls()
        return ImageCalls(self.config.vision_config.pooling_kernel_size**2)

    @cached_property
    def layouts(self) -> tuple[str, ...]:
        """Layouts that the model class can compute: where only some layers read both ways, rows hold one sequence."""
        both_ways = self.config.get_text_config().use_bidirectional_attention is not None
        return ('padded',) if both_ways else super().layouts


def _with_tracks(message: Message) -> Message:
    """Returns the message with the audio of its videos behind all else, where `load_audio_from_video` puts it."""
    tracks = [item.audio for kind, item in media_of([message]) if kind == 'video' and item.audio is not None]
    return {**message, 'content': [*message['content'], *({'type': 'audio', 'audio': track} for track in tracks)]}


MODEL, BODY, SPEC = AccustomedGemma4Model, AccustomedGemma4Body, Gemma4Spec
