"""Multimodal rotary positions: text counts along one axis, an image or video spans time, height and width."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from align_anything.models.family import FamilySpec
from align_anything.models.tower_calls import PatchCalls, TowerCalls

IMAGE, VIDEO, AUDIO, SAME = 1, 2, 3, 4
"""Types of tokens other than text: of an image, of a video, of the audio in a video, and one that moves nothing on."""


def mrope_positions(
    token_types: Tensor,
    grids: Mapping[int, Tensor],
    merge_size: int,
    intervals: Tensor | None = None,
    *,
    per_second: float = 1,
    after_time: bool = False,
    integer: bool = True,
) -> Tensor:
    """Returns `(4, length)`: row 0 counts tokens, rows 1 to 3 are the temporal, vertical and horizontal positions.

    Args:
        token_types: 0 for text, else as above, `(length,)`. Audio stands among the tokens of its video: both begin at
            the same time, and text goes on behind the last stretch of either.
        grids: for `IMAGE` and `VIDEO`, the patches of each medium along time, height and width, `(media, 3)`.
        merge_size: patches along each side that make one token.
        intervals: temporal distance between two frames of each video, `(videos,)`; 1 by default.
        per_second: what the intervals are multiplied by once they are summed up.
        after_time: whether the text after a video begins behind its last temporal position too, not only its extent.
        integer: whether temporal positions are truncated to whole numbers; float32 otherwise.
    """
    length = token_types.numel()
    waiting: dict[int, Iterator[list[int]]] = {kind: iter(grid.tolist()) for kind, grid in grids.items()}
    steps = iter([] if intervals is None else intervals.tolist())
    columns: list[Tensor] = []
    types = token_types.tolist()
    token, position = 0, 0
    while token < length:
        kind = types[token]
        if kind == 0:
            stop = next((index for index in range(token, length) if types[index] != 0), length)
            columns.append(torch.arange(position, position + stop - token).expand(3, -1))
            position += stop - token
        elif kind == SAME:
            columns.append(torch.full((3, 1), position - 1))
            stop = token + 1
        else:
            frames, height, width = next(waiting[kind])
            height, width = height // merge_size, width // merge_size
            step = next(steps, 1) if kind == VIDEO else 1
            # In float32 and in this order, as the models round.
            times = torch.arange(frames) * torch.tensor(step, dtype=torch.float32) * per_second
            times = times.long() if integer else times
            sides = [torch.arange(side, dtype=times.dtype) for side in (height, width)]
            grid = torch.stack(torch.meshgrid(times, *sides, indexing='ij')).flatten(1)
            extent = max(height, width)
            advance = max(extent, times[-1].item() + 1) if after_time else extent
            stop = token + frames * height * width
            if AUDIO in types[token : stop + 1]:
                stop = next((index for index in range(stop, length) if types[index] not in (VIDEO, AUDIO)), length)
                grid, advance = _with_audio(grid, token_types[token:stop] == AUDIO)
            columns.append(grid + position)
            position += advance
        token = stop
    rotary = torch.cat(columns, dim=1) if columns else torch.zeros((3, 0), dtype=torch.long)
    return torch.cat([torch.arange(length)[None], rotary])


def _with_audio(grid: Tensor, is_audio: Tensor) -> tuple[Tensor, float]:
    """Puts the positions of a video, `(3, tokens)`, among those of its audio; returns them and where text goes on."""
    columns = grid.new_empty((3, is_audio.numel()))
    columns[:, ~is_audio] = grid
    columns[:, is_audio] = torch.arange(int(is_audio.sum())).to(grid.dtype)
    # As the models do: behind the last stretch of one kind, though the other may reach further.
    last = int((is_audio != is_audio[-1]).nonzero()[-1]) + 1
    return columns, columns[:, last:].max().item() + 1


class MRopeSpec(FamilySpec):
    """The rules that the Qwen-VL families share."""

    position_rows: ClassVar[int] = 4
    component_prefixes = {
        'vision_tower': ('model.visual',),
        'mm_proj': ('model.visual.merger',),
        'language_model': ('model.language_model', 'lm_head'),
    }

    def positions(self, ids: Tensor, media: dict[str, Tensor], token_tensors: dict[str, Tensor]) -> Tensor:
        """Positions of one sequence, `(4, length)`. Row 0 is what tells transformers where a packed sequence begins."""
        grids = {
            kind: media[name] for kind, name in ((IMAGE, 'image_grid_thw'), (VIDEO, 'video_grid_thw')) if name in media
        }
        if VIDEO in grids:
            grids[VIDEO] = self.video_grids(grids[VIDEO])
        token_types = token_tensors.get('mm_token_type_ids', torch.zeros_like(ids))
        return mrope_positions(token_types, grids, self.config.vision_config.spatial_merge_size, self.intervals(media))

    def tower_calls(self, component: str) -> TowerCalls:
        """Returns how calls of the vision tower are split: patches of all media in one list, with their grids."""
        return PatchCalls()

    def video_grids(self, grids: Tensor) -> Tensor:
        """Returns the grids of the stretches of video tokens, given one grid per video, `(stretches, 3)`."""
        return grids

    def intervals(self, media: Mapping[str, Any]) -> Tensor | None:
        """Returns the temporal distance between two frames of each video, None for 1."""
        return None
