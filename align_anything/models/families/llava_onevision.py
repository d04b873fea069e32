"""LLaVA-OneVision: one image in patches, several whole, videos frame by frame with a token at their end."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaOnevisionForConditionalGeneration, LlavaOnevisionModel

from align_anything.core.errors import SampleError
from align_anything.core.types import Conversation, Piece
from align_anything.models.encoding import RunEncoder
from align_anything.models.families.llava_next import LlavaNextSpec
from align_anything.models.rendering import Run, TrainOn, media_of


class AccustomedLlavaOnevisionModel(LlavaOnevisionForConditionalGeneration):
    """LLaVA-OneVision with a language-model head."""


class AccustomedLlavaOnevisionBody(LlavaOnevisionModel):
    """Takes images of several conversations in one list, and videos of unequal length as one list of frames."""

    def forward(
        self,
        *args: Any,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        image_alone: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        video_frames: Tensor | None = None,
        **inputs: Any,
    ) -> Any:
        """Returns the text model's output; without the two arguments below it is transformers' own forward pass.

        Args:
            image_alone: whether each image is the only one of its conversation, `(images,)`.
            video_frames: number of frames of each video, `(videos,)`; frames then come as `(frames, 3, side, side)`.
        """
        if image_alone is None and video_frames is None:
            pixels = {'pixel_values': pixel_values, 'pixel_values_videos': pixel_values_videos}
            return super().forward(*args, image_sizes=image_sizes, **pixels, **inputs)
        outputs = {}
        if image_alone is not None:
            outputs['image'] = self._images(pixel_values, image_sizes, image_alone)
        if video_frames is not None:
            outputs['video'] = self._videos(pixel_values_videos, video_frames)
        return super().forward(*args, **{**inputs, 'mm_encoder_outputs': outputs})

    def _images(self, pixels: Tensor, sizes: Tensor, alone: Tensor) -> Any:
        flags = alone.tolist()
        crowd = [index for index, flag in enumerate(flags) if not flag]
        # The count of images tells transformers how to cut them: one is cut into patches, a group is not.
        group = crowd * 2 if len(crowd) == 1 else crowd
        order = [*group, *(index for index, flag in enumerate(flags) if flag)]
        counts = ([len(group)] if group else []) + [1] * (len(order) - len(group))
        found = self.get_image_features(pixels[order], sizes[order], batch_num_images=counts, return_dict=True)
        by_image = dict(zip(order, found.pooler_output, strict=True))
        found.pooler_output = [by_image[index] for index in range(len(flags))]
        return found

    def _videos(self, frames: Tensor, lengths: Tensor) -> Any:
        found = self.get_video_features(frames[:, None], return_dict=True)
        # Every frame came as a video, with the token that ends a video behind it.
        tokens, end = found.pooler_output[:, :-1], found.pooler_output[0, -1:]
        videos = [torch.cat([video.flatten(0, 1), end]) for video in tokens.split(lengths.tolist())]
        found.pooler_output = torch.cat(videos)[None]
        return found


@dataclass(frozen=True)
class RunAmongMany(Run):
    """A run of a conversation that has several images."""


class LlavaOnevisionEncoder(RunEncoder):
    """Keeps with each image whether it is alone in its conversation, and with each video its number of frames."""

    def piece(self, run: Run, first: bool = False) -> Piece:
        """Encodes one run. An image that is alone in its run but not in its conversation is processed with another."""
        images = [item for kind, item in run.media if kind == 'image']
        if not isinstance(run, RunAmongMany) or len(images) != 1:
            return super().piece(run, first)
        media = (*run.media, ('image', images[0]))
        piece = super().piece(replace(run, text=run.text + self.placeholders['image'], media=media), first)
        length = len(piece) - self.processor.num_image_tokens - 1
        rows = ('pixel_values', 'image_sizes', 'image_alone')
        return Piece(
            ids=piece.ids[:length],
            weights=piece.weights[:length],
            media={name: value[:-1] if name in rows else value for name, value in piece.media.items()},
            media_counts={**piece.media_counts, 'image': 1},
        )

    def tidied(self, outputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the outputs with `image_alone` for each image and `video_frames` for each video."""
        tidy = dict(outputs)
        if 'batch_num_images' in tidy:
            number = int(tidy.pop('batch_num_images').sum())
            tidy['image_alone'] = torch.full((number,), number == 1)
        if 'pixel_values_videos' in tidy:
            videos = tidy['pixel_values_videos']
            tidy['pixel_values_videos'] = videos.flatten(0, 1)
            tidy['video_frames'] = torch.full((len(videos),), len(videos[0]))
        return tidy


class LlavaOnevisionSpec(LlavaNextSpec):
    """Tells every run whether its conversation has several images."""

    encoder_class = LlavaOnevisionEncoder

    def render(
        self, conversation: Conversation, train_on: TrainOn = 'all_assistant', start: int = 0
    ) -> list[list[Run]]:
        """Returns sequences of runs with their loss weights, before tokenisation; turns before `start` are prompt."""
        sequences = super().render(conversation, train_on, start)
        return [[_among(run, conversation) for run in runs] for runs in sequences]

    def render_prompt(self, messages: Conversation) -> Run:
        """Returns the one run that generation starts from, before tokenisation."""
        return _among(super().render_prompt(messages), messages)

    def generation_inputs(self, prompts: Sequence[Piece]) -> dict[str, Any]:
        """Returns the arguments of `generate()`. Raises SampleError also for videos of unequal length in one prompt."""
        inputs = super().generation_inputs(prompts)
        if inputs.pop('image_alone', None) is not None:
            inputs['batch_num_images'] = torch.tensor([prompt.media_counts.get('image', 0) for prompt in prompts])
        frames = inputs.pop('video_frames', None)
        if frames is not None:
            lengths = frames.unique().tolist()
            if len(lengths) > 1:
                raise SampleError(
                    f'a prompt has videos of {" and ".join(map(str, lengths))} frames, and generate() of this model '
                    'takes only videos of one length: data_cfgs.num_frames gives those of a dataset the same'
                )
            inputs['pixel_values_videos'] = inputs['pixel_values_videos'].unflatten(0, (len(frames), lengths[0]))
        return inputs

    def generation_key(self, prompt: Piece) -> Hashable:
        """Returns the number of frames of the prompt's videos: transformers' class takes them in one tensor."""
        return tuple(prompt.media['video_frames'].unique().tolist()) if 'video_frames' in prompt.media else None


def _among(run: Run, conversation: Conversation) -> Run:
    images = sum(kind == 'image' for kind, _ in media_of(conversation))
    return RunAmongMany(run.text, run.weight, run.media, run.token) if images > 1 else run


MODEL, BODY, SPEC = AccustomedLlavaOnevisionModel, AccustomedLlavaOnevisionBody, LlavaOnevisionSpec
