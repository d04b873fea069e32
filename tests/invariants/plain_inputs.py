"""Arguments of plain transformers models for one sequence whose tokens are given: media from its own processors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)

from align_anything.models.encoding import UNUSED_OUTPUTS
from align_anything.models.family import FamilySpec
from align_anything.models.media_arguments import video_metadata

Media = Sequence[tuple[str, Any]]
KINDS = ('image', 'video', 'audio')


def plain_inputs(spec: FamilySpec, prompt: Tensor, response: Tensor, media: Media) -> dict[str, Tensor]:
    """The arguments for a sequence with `media`, `(kind, object)` in order; no positions: the model knows its own."""
    ids = torch.cat([prompt, response])
    inputs = {'input_ids': ids[None], 'attention_mask': torch.ones_like(ids)[None]}
    if media:
        inputs |= {name: value for name, value in _processed(spec, media).items() if name not in UNUSED_OUTPUTS}
    if spec.model_type == 'paligemma':
        inputs['token_type_ids'] = torch.cat([torch.zeros_like(prompt), torch.ones_like(response)])[None]
    elif spec.token_tensor_names:
        inputs |= dict.fromkeys(spec.token_tensor_names, _types(spec, ids)[None])
    if spec.model_type == 'mllama' and media:
        seen = get_cross_attention_token_mask(ids.tolist(), spec.config.image_token_index)
        tiles = inputs['aspect_ratio_mask'][0].sum(-1).tolist()
        most = spec.config.vision_config.max_num_tiles
        dense = convert_sparse_cross_attention_mask_to_dense([seen], [tiles], most, len(ids))
        inputs['cross_attention_mask'] = torch.from_numpy(dense)
    return inputs


def _types(spec: FamilySpec, ids: Tensor) -> Tensor:
    """1, 2 and 3 at the tokens of images, videos and audio, `(length,)`."""
    types, known = torch.zeros_like(ids), spec.config.to_dict()
    for number, kind in enumerate(KINDS, 1):
        for token in (known.get(f'{kind}_token_{ending}') for ending in ('id', 'index')):
            if token is not None:
                types[ids == token] = number
    return types


def _processed(spec: FamilySpec, media: Media) -> dict[str, Tensor]:
    """What the processor makes of the media in one call."""
    if spec.model_type == 'smolvlm':
        # Its processor has one name for the pixels of images and of videos, and keeps those of videos only.
        calls = [_call(spec, [item]) for item in media]
        return {name: torch.cat([call[name] for call in calls], 1) for name in calls[0] if name not in UNUSED_OUTPUTS}
    return _call(spec, media)


def _call(spec: FamilySpec, media: Media) -> dict[str, Tensor]:
    by_kind = {kind: [item for each, item in media if each == kind] for kind in KINDS}
    how: dict[str, Any] = {}
    if by_kind['image']:
        how['images'] = [by_kind['image']]
    if by_kind['video']:
        clips = by_kind['video']
        how |= {'videos': [[item.frames for item in clips]], 'do_sample_frames': False}
        how['video_metadata'] = [video_metadata(item) for item in clips]
        if 'omni' in spec.model_type:
            # One frame every half second.
            how['videos_kwargs'] = {'size': spec.processor.video_processor.to_dict()['size'], 'fps': 2.0}
    if by_kind['audio']:
        how |= {'audio': [item.samples for item in by_kind['audio']], 'sampling_rate': by_kind['audio'][0].rate}
    text = ' '.join(spec.placeholder(kind) for kind, _ in media)
    outputs = dict(spec.processor(text=[text], return_tensors='pt', **how))
    if spec.model_type == 'gemma4' and by_kind['video']:
        # The model asks for it, the processor does not return it.
        outputs['num_frames_per_video'] = torch.tensor([len(item.frames) for item in by_kind['video']])
    return outputs
