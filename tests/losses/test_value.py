from __future__ import annotations

import numpy as np
import pytest
import torch

from align_anything.losses.value import explained_variance, explained_variance_sums, value_loss
from tests.losses.ragged import WEIGHTS, check_gradient, cut, cuts, flat, lists

VALUES, OLD, RETURNS = lists(1), lists(2), lists(3)


@pytest.mark.parametrize('clip_range', [None, 0.3])
def test_value_loss(clip_range: float | None) -> None:
    expected = 0.0
    for rows in zip(VALUES, OLD, RETURNS, WEIGHTS, strict=True):
        for value, old, target, weight in zip(*rows, strict=True):
            error = (value - target) ** 2
            if clip_range is not None:
                error = max(error, (min(max(value, old - clip_range), old + clip_range) - target) ** 2)
            expected += 0.5 * weight * error
    for batches in cuts():
        found = sum(
            value_loss(*(flat(cut(rows, numbers)) for rows in (VALUES, OLD, RETURNS, WEIGHTS)), clip_range=clip_range)
            for numbers in batches
        )
        assert float(found) == pytest.approx(expected, rel=1e-12)
    fixed = flat(OLD), flat(RETURNS), flat(WEIGHTS)
    check_gradient(lambda values: value_loss(values, *fixed, clip_range=clip_range), flat(VALUES))


def test_a_value_that_left_the_range_towards_its_return_rests() -> None:
    values = torch.tensor([0.9, -0.9], requires_grad=True)
    loss = value_loss(values, torch.zeros(2), torch.ones(2), torch.ones(2), clip_range=0.5)
    (gradient,) = torch.autograd.grad(loss, values)
    assert gradient[0] == 0 > gradient[1]


def explained(values: np.ndarray, returns: np.ndarray, weights: np.ndarray) -> float | None:
    sums = explained_variance_sums(*map(torch.tensor, (values, returns, weights)))
    return explained_variance({name: float(total) / weights.sum() for name, total in sums.items()})


def test_explained_variance() -> None:
    values, returns, weights = (flat(rows).numpy() for rows in (VALUES, RETURNS, WEIGHTS))
    counted = weights > 0
    expected = 1 - np.var((returns - values)[counted]) / np.var(returns[counted])
    assert explained(values, returns, weights) == pytest.approx(expected, rel=1e-12)
    assert explained(returns, returns, weights) == 1.0
    assert explained(np.full_like(values, 3.0), returns, weights) == pytest.approx(0.0, abs=1e-12)
    assert explained(values, np.full_like(values, 3.0), weights) is None, 'nothing is to be explained'
    rounded = 3.0 + 3e-8 * np.resize([1.0, -1.0], values.shape)
    assert explained(values, rounded, weights) is None, 'rounding is no variance'
