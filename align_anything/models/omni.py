"""What the thinkers of Qwen2.5-Omni and Qwen3-Omni share."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from align_anything.core.types import Piece, Video
from align_anything.models.body import BodyWithin
from align_anything.models.encoding import RunEncoder, pad_positions
from align_anything.models.family import FamilySpec
from align_anything.models.media_arguments import sampled_rate
from align_anything.models.mrope import AUDIO, IMAGE, SAME, VIDEO, mrope_positions
from align_anything.models.rendering import Run

COMPONENTS = {
    'vision_tower': ('visual',),
    'audio_tower': ('audio_tower',),
    'mm_proj': ('visual.merger',),
    'language_model': ('model', 'lm_head'),
}


class OmniEncoder(RunEncoder):
    """Tells the processor how densely a video was sampled and whether it has audio; drops padding behind audio."""

    def handed(self, run: Run) -> tuple[tuple[str, Any], ...]:
        """Returns the run's media, the audio track of a video behind the video: their tokens are interleaved."""
        media: list[tuple[str, Any]] = []
        for kind, item in run.media:
            media.append((kind, item))
            if kind == 'video' and item.audio is not None:
                media.append(('audio', item.audio))
        return tuple(media)

    def likeness(self, video: Video) -> Hashable:
        """Returns what the videos of one call must have in common, which is also whether they have audio."""
        return super().likeness(video), video.audio is not None

    def arguments(self, media: Mapping[str, list[Any]]) -> dict[str, Any]:
        """Returns the processor's arguments, the size of videos among them.

        The processor's class has a size of its own for videos, which holds unless the checkpoint has one that is not
        merely the size of its images.
        """
        arguments = super().arguments(media)
        if 'video' in media:
            # One call takes one rate, and audio in all videos or in none; others come in calls of their own.
            video = media['video'][0]
            videos: dict[str, Any] = {'fps': sampled_rate(video), 'use_audio_in_video': video.audio is not None}
            size = self.processor.video_processor.to_dict()['size']
            if size != self.processor.image_processor.to_dict()['size']:
                videos['size'] = dict(size)
            arguments['videos_kwargs'] = videos
        return arguments

    def tidied(self, outputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the outputs with audio clips as long as the longest one: the tower reads no padding."""
        if 'input_features' not in outputs:
            return outputs
        longest = int(outputs['feature_attention_mask'].sum(-1).max())
        features = outputs['input_features'][..., :longest].contiguous()
        mask = outputs['feature_attention_mask'][..., :longest].contiguous()
        return {**outputs, 'input_features': features, 'feature_attention_mask': mask}


class OmniSpec(FamilySpec):
    """Time has one scale for videos and text: position ids per second, and text goes on after the last frame."""

    position_rows: ClassVar[int] = 4
    encoder_class = OmniEncoder
    integer_positions: ClassVar[bool] = True
    """Whether temporal positions are truncated to whole numbers."""

    shared_marks: ClassVar[bool] = True
    """Whether the two tokens that open a video with audio stand at one position, and the two that close it."""
    reads_audio_in_video: ClassVar[bool] = True

    def positions(self, ids: Tensor, media: dict[str, Tensor], token_tensors: dict[str, Tensor]) -> Tensor:
        """Positions of one sequence, `(4, length)`; audio clips count as text. Float32 unless `integer_positions`."""
        names = ((IMAGE, 'image_grid_thw'), (VIDEO, 'video_grid_thw'))
        positions = mrope_positions(
            self._token_types(ids),
            {kind: media[name] for kind, name in names if name in media},
            self.config.vision_config.spatial_merge_size,
            media.get('video_second_per_grid'),
            per_second=self.config.position_id_per_seconds,
            after_time=True,
            integer=self.integer_positions,
        )
        return positions if self.integer_positions else positions.float()

    def _token_types(self, ids: Tensor) -> Tensor:
        config = self.config
        is_video, is_audio = ids == config.video_token_id, ids == config.audio_token_id
        types = torch.zeros_like(ids)
        types[ids == config.image_token_id] = IMAGE
        types[is_video] = VIDEO
        opens = (ids[:-1] == config.vision_start_token_id) & (ids[1:] == config.audio_start_token_id)
        for start in (opens.nonzero().flatten() + 2).tolist():
            stop = start + int((is_video | is_audio)[start:].long().cumprod(0).sum())
            types[start:stop][is_audio[start:stop]] = AUDIO
            if self.shared_marks:
                types[start - 1] = SAME
                types[stop + 1 : stop + 2] = SAME
        return types

    def generation_inputs(self, prompts: Sequence[Piece]) -> dict[str, Any]:
        """Returns the arguments of `generate()`.

        Positions are among them: transformers finds them itself only where all videos have audio or none has.
        """
        positions = [self.positions(prompt.ids, prompt.media, prompt.token_tensors) for prompt in prompts]
        return {**super().generation_inputs(prompts), 'position_ids': pad_positions(positions)}


class OmniBody(BodyWithin):
    """What the Accustomed classes of the thinkers compute: media features at their positions, then the text model."""

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
            sounds = self.get_audio_features(input_features, feature_attention_mask, return_dict=True)
            embeds = put(embeds, input_ids == self.config.audio_token_id, sounds.last_hidden_state)
        seen: list[tuple[Tensor, Any]] = []
        if pixel_values is not None:
            pictures = self.get_image_features(pixel_values, image_grid_thw, return_dict=True)
            seen.append((input_ids == self.config.image_token_id, pictures))
        if pixel_values_videos is not None:
            clips = self.get_video_features(pixel_values_videos, video_grid_thw, return_dict=True)
            seen.append((input_ids == self.config.video_token_id, clips))
        for positions, visuals in seen:
            embeds = put(embeds, positions, torch.cat(visuals.pooler_output))
        return self.model(inputs_embeds=embeds, **inputs, **(self.by_layer(embeds, seen) if seen else {}))

    def by_layer(self, embeds: Tensor, seen: list[tuple[Tensor, Any]]) -> dict[str, Any]:
        """Returns what the text model takes beside `embeds` of images and videos, by their positions and features."""
        return {}


def put(embeds: Tensor, positions: Tensor, features: Tensor) -> Tensor:
    """Returns `embeds` `(rows, length, size)` with `features` `(media tokens, size)` where `positions` are true."""
    return embeds.masked_scatter(positions[..., None], features.to(embeds.dtype))
