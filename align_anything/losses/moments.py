"""Means and variances over all units of a step, whatever the ranks and micro-batches they are spread over.

`moments` of subsets add up. So a step sums those of its micro-batches, then over ranks, and only then whitens.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

VARIANCE_FLOOR = 1e-8
"""Added to the variance that values are divided by, as in TRL and verl."""


def moments(values: Tensor, weights: Tensor) -> Tensor:
    """Count, sum and sum of squares, weighted, `(3,)` float64: in float32 their difference would lose the variance.

    Args:
        values: `(N,)`, or `(R,)` for numbers of responses.
        weights: how much each counts, in the same shape; zero leaves it out.
    """
    weights, values = weights.double(), values.double()
    return torch.stack([weights.sum(), (weights * values).sum(), (weights * values.square()).sum()])


def mean_and_variance(totals: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sample variance (with n - 1), each `()` float64, of what `moments` counted; zeros where it is nothing.

    Args:
        totals: the sum of `moments`, `(3,)`.
    """
    count, total, squares = totals
    mean = total / (count + (count == 0))
    return mean, (squares - total * mean).clamp(min=0) / (count - 1).clamp(min=1)


def whiten(values: Tensor, mean: Tensor | float, variance: Tensor | float) -> Tensor:
    """Values less the mean, over the standard deviation, in their own shape and type.

    Advantages between zero and the mean change their sign; those that are all equal become zero.
    """
    return ((values.double() - mean) / (variance + VARIANCE_FLOOR) ** 0.5).to(values.dtype)


NOTHING_SEEN: Mapping[str, float] = MappingProxyType({'count': 0.0, 'mean': 0.0, 'm2': 0.0})
"""State of running statistics before the first step: `m2` is the sum of squared distances from the mean."""


def merged(state: Mapping[str, float], totals: Tensor) -> dict[str, float]:
    """Running statistics after one more step (Chan et al., 1983): those of all that was ever seen.

    Args:
        state: what was seen before, `NOTHING_SEEN` at first; it belongs in the checkpoint.
        totals: `moments` of the step's values, summed over ranks, `(3,)`.
    """
    count, total, squares = totals.tolist()
    if not count:
        return dict(state)
    merged, mean = state['count'] + count, total / count
    distance = mean - state['mean']
    return {
        'count': merged,
        'mean': state['mean'] + distance * count / merged,
        'm2': state['m2'] + max(squares - total * mean, 0.0) + distance**2 * state['count'] * count / merged,
    }


def normalised(scores: Tensor, state: Mapping[str, float]) -> Tensor:
    """Scores by the mean and deviation of all that were ever seen, these included: merge them first. `(R,)`."""
    return whiten(scores, state['mean'], state['m2'] / max(state['count'] - 1.0, 1.0))
