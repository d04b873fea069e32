from __future__ import annotations

import numpy as np
import torch

from align_anything.losses.moments import NOTHING_SEEN, mean_and_variance, merged, moments, normalised, whiten
from tests.losses.ragged import WEIGHTS, cut, cuts, flat, lists


def test_moments_of_parts_add_up_to_those_of_the_step() -> None:
    values = lists(1, 3.0)
    counted = flat(values)[flat(WEIGHTS) > 0].numpy()
    for batches in cuts():
        totals = sum(moments(flat(cut(values, numbers)), flat(cut(WEIGHTS, numbers))) for numbers in batches)
        mean, variance = mean_and_variance(totals)
        np.testing.assert_allclose([float(mean), float(variance)], [counted.mean(), counted.var(ddof=1)], rtol=1e-12)
        found = whiten(flat(values), mean, variance)[flat(WEIGHTS) > 0].numpy()
        np.testing.assert_allclose([found.mean(), found.var(ddof=1)], [0.0, 1.0], rtol=1e-6, atol=1e-12)


def test_a_small_variance_around_a_large_mean_survives_float32() -> None:
    values = torch.tensor([1e4, 1e4 + 1, 1e4 + 2])
    _, variance = mean_and_variance(moments(values, torch.ones(3)))
    np.testing.assert_allclose(float(variance), 1.0, rtol=1e-6)


def test_nothing_and_one_value_have_no_variance() -> None:
    for count in (0, 1):
        totals = moments(torch.full((count,), 5.0), torch.ones(count))
        mean, variance = mean_and_variance(totals)
        assert [float(mean), float(variance)] == [5.0 * count, 0.0]
        assert whiten(torch.full((count,), 5.0), mean, variance).tolist() == [0.0] * count


def test_running_statistics_are_those_of_all_that_was_seen() -> None:
    steps = [np.array(row) + 100 for row in lists(2, 5.0)]
    state = dict(NOTHING_SEEN)
    for number, step in enumerate(steps, start=1):
        scores = torch.tensor(step)
        state = merged(state, moments(scores, torch.ones_like(scores)))
        seen = np.concatenate(steps[:number])
        np.testing.assert_allclose(state['mean'], seen.mean(), rtol=1e-12)
        np.testing.assert_allclose(state['m2'], ((seen - seen.mean()) ** 2).sum(), rtol=1e-9)
        assert state['count'] == len(seen)
    expected = (steps[-1] - seen.mean()) / np.sqrt(seen.var(ddof=1) + 1e-8)
    np.testing.assert_allclose(normalised(torch.tensor(steps[-1]), state).numpy(), expected, rtol=1e-9)


def test_a_step_without_scores_changes_nothing() -> None:
    state = {'count': 3.0, 'mean': 1.0, 'm2': 2.0}
    assert merged(state, moments(torch.zeros(0), torch.zeros(0))) == state
