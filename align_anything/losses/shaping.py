"""What is done to the scores of responses before they become advantages."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from align_anything.losses.advantages import group_relative


def weighted_sum(rewards: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The score of each response, `(R,)`: the weighted sum of its rewards, 0 for one that nothing judged.

    Args:
        rewards: by name, `(R,)` each; NaN where a reward abstained, which is left out of the sum.
        weights: of each; others are no part of the score.
    """
    return torch.stack([weight * rewards[name].nan_to_num(nan=0.0) for name, weight in weights.items()]).sum(0)


def normalised_sum(rewards: Mapping[str, Tensor], weights: Mapping[str, float], groups: Tensor) -> Tensor:
    """The weighted sum of rewards that were brought to one scale, `(R,)`, whatever the scales they came in.

    Each is first centred and divided by its own standard deviation over the responses to a prompt, as in GDPO (Liu et
    al., 2026, arXiv:2601.05242) and in the `advantage_aggr` of DanceGRPO.

    Args:
        rewards, weights: as in `weighted_sum`; where a reward abstained it is left out of its group's moments too.
        groups: the prompt of each response, `(R,)`.
    """
    return weighted_sum({name: _normalised(rewards[name], groups) for name in weights}, weights)


def _normalised(values: Tensor, groups: Tensor) -> Tensor:
    judged = ~values.isnan()
    return values.masked_scatter(judged, group_relative(values[judged], groups[judged]))


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
