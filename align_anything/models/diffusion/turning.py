"""Queries and keys turned by positions that each row has of its own, as denoisers turn those that all rows share."""

from __future__ import annotations

import torch
from torch import Tensor


def turned_in_pairs(states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Returns `(rows, heads, tokens, size)` turned in pairs of neighbours by tables `(rows, tokens, size)`."""
    even, odd = states.unflatten(-1, (-1, 2)).unbind(-1)
    across = torch.stack([-odd, even], -1).flatten(-2)
    return (states.float() * cosine[:, None] + across.float() * sine[:, None]).to(states.dtype)


def turned_as_complex(states: Tensor, turns: Tensor) -> Tensor:
    """Returns `(rows, heads, tokens, size)` turned by complex numbers `(rows, tokens, size / 2)`."""
    pairs = torch.view_as_complex(states.float().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turns[:, None]).flatten(-2).to(states.dtype)


def first_turned_in_pairs(states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turns as many tokens as the tables have, behind which prompts stand."""
    count = cosine.shape[1]
    return torch.cat([turned_in_pairs(states[:, :, :count], cosine, sine), states[:, :, count:]], 2)


def last_turned_in_pairs(states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turns as many tokens as the tables have, before which prompts stand."""
    start = states.shape[2] - cosine.shape[1]
    return torch.cat([states[:, :, :start], turned_in_pairs(states[:, :, start:], cosine, sine)], 2)
