"""How steps lie in a Piece: observations, which weigh nothing, and actions, which are units.

An observation is the id OBSERVATION; an action is its number, or 0 where it is numbers, which lie in the media beside.
`media` holds a row for each observation or action of the piece:

- `frames` `(observations, cameras, 3, height, width)` uint8, `sensors` `(observations, sensors)` int64 and `state`
  `(observations, numbers)` float32;
- `values` `(actions, chunk, dimensions)` float32, normalised, and `said` `(actions, chunk)` bool, which of the steps
  there are: demonstrations may end in the middle of a chunk;
- `goal` `(1, length)`, of a prompt alone.

`token_tensors['look']` tells observations apart by what they hold, so that none is looked at twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from align_anything.core.types import Piece

OBSERVATION = -1
FRAMES, SENSORS, STATE, GOAL = 'frames', 'sensors', 'state', 'goal'
VALUES, SAID = 'values', 'said'
LOOK = 'look'


def observed(media: dict[str, Tensor], cameras: int) -> Piece:
    """Returns the piece of one observation, given its media."""
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(media):
        digest.update(media[name].contiguous().numpy().tobytes())
    look = int.from_bytes(digest.digest(), 'little', signed=True)
    return Piece(
        torch.tensor([OBSERVATION]),
        torch.zeros(1),
        media=media,
        media_counts={'image': cameras},
        token_tensors={LOOK: torch.tensor([look])},
    )


def acted(number: int, weight: float, values: Tensor | None = None, said: Tensor | None = None) -> Piece:
    """Returns the piece of one action: its number, or its `values` `(chunk, dimensions)`."""
    media = {} if values is None else {VALUES: values[None], SAID: said[None]}
    return Piece(
        torch.tensor([number]), torch.tensor([float(weight)]), media=media, token_tensors={LOOK: torch.zeros(1).long()}
    )


def rows_of(pieces: Sequence[Piece], name: str) -> Tensor | None:
    """Returns the media under that name of pieces that follow each other, in order; None where there are none."""
    found = [piece.media[name] for piece in pieces if name in piece.media]
    return torch.cat(found) if found else None
