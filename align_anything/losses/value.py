"""What a critic learns, and how well it knows it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, weights: Tensor, *, clip_range: float | None = None
) -> Tensor:
    """`½ Σ w max((V - R)², (V_clip - R)²)`, V_clip being V held within `clip_range` of the old value.

    The larger of the two, as in the code of PPO's authors and in TRL: a value that has left the range towards its
    return has no gradient any more, one that has left it the other way still has. Without a range it is half the
    squared error.

    Args:
        values: the critic's value of each unit now, `(N,)`.
        old_values: the same when the responses were sampled, `(N,)`.
        returns: what the values should be, `(N,)`.
        weights: loss weight of each unit, `(N,)`.

    Returns:
        The sum, `()`.
    """
    losses = (values - returns).square()
    if clip_range is not None:
        held = old_values + (values - old_values).clamp(-clip_range, clip_range)
        losses = torch.maximum(losses, (held - returns).square())
    return 0.5 * (weights * losses).sum()


def explained_variance_sums(values: Tensor, returns: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """The sums over units, each `()` float64, whose step means over the weights `explained_variance` reads."""
    weights, returns = weights.double(), returns.double()
    errors = returns - values.detach().double()
    return {
        'returns': (weights * returns).sum(),
        'squared_returns': (weights * returns.square()).sum(),
        'value_errors': (weights * errors).sum(),
        'squared_value_errors': (weights * errors.square()).sum(),
    }


def explained_variance(means: Mapping[str, float]) -> float | None:
    """`1 - Var(R - V) / Var(R)`: one for a critic that knows all, zero for one that knows no more than the mean.

    None for returns that are all equal, which leave nothing to explain.

    Args:
        means: the sums of `explained_variance_sums`, divided by the sum of the weights over the step.
    """
    spread = means['squared_returns'] - means['returns'] ** 2
    unexplained = means['squared_value_errors'] - means['value_errors'] ** 2
    # Returns are made in float32, whose rounding is no variance: (6e-8)² of their squares.
    return 1.0 - unexplained / spread if spread > 1e-12 * means['squared_returns'] else None
