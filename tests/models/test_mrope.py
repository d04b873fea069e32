"""Our rotary positions against the models' own `get_rope_index`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from align_anything.models.mrope import mrope_positions
from align_anything.models.structure import skeleton
from tests.models.samples import ids_of, later_image, load, picture, several_images, single, user

Tiny = Callable[[str], Path]
QWEN = ['qwen2_vl', 'qwen2_5_vl', 'qwen3_vl']


def _rope_index(spec: Any, ids: Tensor, types: Tensor, **grids: Any) -> Tensor:
    return skeleton(spec.config).model.get_rope_index(ids[None], types[None], **grids)[0][:, 0]


@pytest.mark.parametrize('family', QWEN)
@pytest.mark.parametrize('make', [single, several_images, later_image])
def test_positions_of_images_are_the_models_own(family: str, make: Callable, tiny: Tiny) -> None:
    spec = load(tiny(family))
    conversation = [*make(), user(picture(120, 30), picture(30, 150)), *make()]
    example = spec.encode(conversation)
    pieces = [example.prompt, example.responses[0]]
    ids = ids_of(example)
    types = torch.cat([piece.token_tensors.get('mm_token_type_ids', torch.zeros_like(piece.ids)) for piece in pieces])
    media = spec.merge_media([piece.media for piece in pieces])
    positions = spec.positions(ids, media, {'mm_token_type_ids': types})
    assert positions.shape == (4, len(ids)) and positions.dtype == torch.int64
    assert torch.equal(positions[0], torch.arange(len(ids)))
    assert torch.equal(positions[1:], _rope_index(spec, ids, types, image_grid_thw=media['image_grid_thw']))


@pytest.mark.parametrize('family', QWEN)
def test_positions_of_videos_are_the_models_own(family: str, tiny: Tiny) -> None:
    spec = load(tiny(family))
    # Text, an image of 4x6 patches, text, a video of 3 frames of 4x4 patches, text, another of 2 frames of 2x8.
    grids = {'image_grid_thw': torch.tensor([[1, 4, 6]]), 'video_grid_thw': torch.tensor([[3, 4, 4], [2, 2, 8]])}
    stretches = [(0, 5), (1, 6), (0, 2)]
    frames = [[(2, 4)] * 3, [(2, 4)] * 2]
    for clip in frames:
        if family == 'qwen3_vl':
            # Timestamps in text part the frames.
            stretches += [stretch for frame in clip for stretch in ((0, 2), frame)]
        else:
            stretches += [(0, 1), (2, sum(length for _, length in clip))]
    stretches.append((0, 4))
    types = torch.tensor([kind for kind, length in stretches for _ in range(length)])
    media: dict[str, Any] = dict(grids)
    if family == 'qwen2_5_vl':
        media['second_per_grid_ts'] = torch.tensor([1.5, 0.5])
    ids = torch.zeros_like(types)
    expected = _rope_index(spec, ids, types, **{name: value.clone() for name, value in media.items()})
    assert torch.equal(spec.positions(ids, media, {'mm_token_type_ids': types})[1:], expected)


def test_text_counts_on_all_rows() -> None:
    assert torch.equal(mrope_positions(torch.zeros(5, dtype=torch.long), {}, 2), torch.arange(5).expand(4, -1))


def test_an_image_by_hand() -> None:
    # Two tokens of text (0, 1); an image of 4x6 patches merged by 2 is 2x3 tokens from position 2 on; the next text
    # goes on at 2 + max(2, 3) = 5. Two images may touch: the second starts at 5 + max(1, 1) = 6 after one token at 5.
    grid = torch.tensor([[1, 4, 6], [1, 2, 2]])
    positions = mrope_positions(torch.tensor([0, 0] + [1] * 6 + [1] + [0]), {1: grid}, 2)
    assert positions[0].tolist() == list(range(10))
    assert positions[1].tolist() == [0, 1, 2, 2, 2, 2, 2, 2, 5, 6]
    assert positions[2].tolist() == [0, 1, 2, 2, 2, 3, 3, 3, 5, 6]
    assert positions[3].tolist() == [0, 1, 2, 3, 4, 2, 3, 4, 5, 6]
