"""What the thinkers of Qwen2.5-Omni and Qwen3-Omni share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from align_anything.models.encoding import RunEncoder
from align_anything.models.family import FamilySpec
from align_anything.models.media_arguments import sampled_rate
from align_anything.models.mrope import IMAGE, VIDEO, mrope_positions

PARTS = {
    'vision_tower': ('visual',),
    'audio_tower': ('audio_tower',),
    'mm_proj': ('visual.merger',),
    'language_model': ('model', 'lm_head'),
}


class OmniEncoder(RunEncoder):
    """Tells the processor how densely a clip was sampled, and drops the padding behind sounds."""

    def arguments(self, media: Mapping[str, list[Any]]) -> dict[str, Any]:
        """Returns the processor's arguments, the size of clips among them.

        The processor's class has a size of its own for clips, which holds unless the checkpoint has one that is not
        merely the size of its pictures.
        """
        arguments = super().arguments(media)
        if 'video' in media:
            # One call takes one rate; clips of other rates come in calls of their own.
            clips: dict[str, Any] = {'fps': sampled_rate(media['video'][0])}
            size = self.processor.video_processor.to_dict()['size']
            if size != self.processor.image_processor.to_dict()['size']:
                clips['size'] = dict(size)
            arguments['videos_kwargs'] = clips
        return arguments

    def tidied(self, outputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the outputs with sounds as long as the longest one: the tower reads no padding."""
        if 'input_features' not in outputs:
            return outputs
        longest = int(outputs['feature_attention_mask'].sum(-1).max())
        features = outputs['input_features'][..., :longest].contiguous()
        mask = outputs['feature_attention_mask'][..., :longest].contiguous()
        return {**outputs, 'input_features': features, 'feature_attention_mask': mask}


class OmniSpec(FamilySpec):
    """Time has one scale for clips and text: position ids per second, and text goes on after the last frame."""

    position_rows: ClassVar[int] = 4
    encoder_class = OmniEncoder
    whole_positions: ClassVar[bool] = True
    """Whether temporal positions are cut to whole numbers."""

    def positions(self, ids: Tensor, media: dict[str, Tensor], token_tensors: dict[str, Tensor]) -> Tensor:
        """Positions of one sequence, `(4, length)`; sounds count as text. Float32 unless `whole_positions`."""
        types = torch.zeros_like(ids)
        types[ids == self.config.image_token_id] = IMAGE
        types[ids == self.config.video_token_id] = VIDEO
        names = ((IMAGE, 'image_grid_thw'), (VIDEO, 'video_grid_thw'))
        positions = mrope_positions(
            types,
            {kind: media[name] for kind, name in names if name in media},
            self.config.vision_config.spatial_merge_size,
            media.get('video_second_per_grid'),
            per_second=self.config.position_id_per_seconds,
            after_time=True,
            whole=self.whole_positions,
        )
        return positions if self.whole_positions else positions.float()


def put(embeds: Tensor, places: Tensor, features: Tensor) -> Tensor:
    """Returns `embeds` `(rows, length, size)` with `features` `(media tokens, size)` at `places` `(rows, length)`."""
    return embeds.masked_scatter(places[..., None], features.to(embeds.dtype))
