"""What is done to the scores of responses before they become advantages."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def weighted_sum(rewards: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The score of each response, `(R,)`: the weighted sum of its rewards, 0 for one that nothing judged.

    Args:
        rewards: by name, `(R,)` each; NaN where a reward abstained, which is left out of the sum.
        weights: of each; others are no part of the score.
    """
    return torch.stack([weight * rewards[name].nan_to_num(nan=0.0) for name, weight in weights.items()]).sum(0)


def overlong_penalty(lengths: Tensor, *, max_length: int, buffer: int) -> Tensor:
    """What is added to the score of each response for its length, from 0 to -1, `(R,)`.

    Nothing up to `max_length - buffer`, then falling in a line to -1 at `max_length` (DAPO: Yu et al., 2025,
    arXiv:2503.14476, eq. 13).

    Args:
        lengths: number of units of each response, `(R,)`.
        buffer: the paper's L_cache, at least 1.
    """
    return ((max_length - buffer - lengths) / buffer).clamp(-1.0, 0.0)


def missing_eos_penalty(ended: Tensor, penalty: float) -> Tensor:
    """What is added to the score of each response that was clipped at the length limit, `(R,)` (Huang et al., 2024,
    arXiv:2403.17031; TRL).

    Args:
        ended: whether the response has its end-of-turn token, `(R,)` bool.
        penalty: how much an unfinished one loses.
    """
    return -penalty * (~ended).float()


def informative(scores: Tensor, groups: Tensor) -> Tensor:
    """Whether the group of each response has scores that differ, `(R,)` bool.

    Where all are equal every advantage is zero: dynamic sampling takes other prompts instead (DAPO: Yu et al., 2025,
    arXiv:2503.14476, eq. 11, which counts right answers).

    Args:
        scores: `(R,)`, before any penalty that should not count as a difference.
        groups: the prompt of each response, `(R,)`.
    """
    names, index = torch.unique(groups, return_inverse=True)
    empty = scores.new_zeros(len(names))
    highest = empty.scatter_reduce(0, index, scores, 'amax', include_self=False)
    lowest = empty.scatter_reduce(0, index, scores, 'amin', include_self=False)
    return (highest > lowest)[index]
