"""Intervals that hold the truth as often as they say, and distances against their closed forms, in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from align_anything.metrics.distances import frechet_distance, kernel_distance
from align_anything.metrics.statistics import bootstrap, paired_difference, ratio, win_rate


def test_an_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    ones, held = np.ones(80), 0
    for trial in range(200):
        values = (random.random(80) < 0.3).astype(float)
        low, high = bootstrap(values, ones, samples=200, seed=trial)
        held += low <= 0.3 <= high
    # 0.95 of 200 is 190 with a deviation of 3; percentile intervals of 80 draws are a little narrow.
    assert 176 <= held <= 199


def test_an_interval_is_as_wide_as_theory_has_it_and_seeded() -> None:
    values, ones = np.random.default_rng(0).normal(2.0, 3.0, 400), np.ones(400)
    low, high = bootstrap(values, ones, samples=2000)
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.08)
    assert bootstrap(values, ones, seed=3) == bootstrap(values, ones, seed=3) != bootstrap(values, ones, seed=4)
    narrow = bootstrap(values, ones, samples=2000, level=0.5)
    assert low < narrow[0] < values.mean() < narrow[1] < high


def test_rows_are_resampled_and_not_responses() -> None:
    """Ten responses to a prompt that are all alike are no more evidence than one."""
    wins = (np.random.default_rng(0).random(50) < 0.5).astype(float)
    once = bootstrap(wins, np.ones(50))
    assert bootstrap(10 * wins, np.full(50, 10.0)) == pytest.approx(once)


def test_ratios_weigh_rows_by_their_counts_and_leave_empty_resamplings_out() -> None:
    errors, words = np.array([1.0, 0.0, 8.0]), np.array([2.0, 10.0, 8.0])
    assert ratio(errors, words) == 9 / 20
    low, high = bootstrap(np.array([1.0, 0.0]), np.array([1.0, 0.0]), samples=200)
    assert low == high == 1.0


def test_pairing_takes_out_what_is_hard_for_both() -> None:
    random = np.random.default_rng(0)
    hard, ones = random.normal(0, 5, 200), np.ones(200)
    better, worse = hard + 1 + random.normal(0, 0.5, 200), hard + random.normal(0, 0.5, 200)
    found = paired_difference(better, ones, worse, ones)
    assert found.value == pytest.approx(better.mean() - worse.mean())
    assert found.interval[0] > 0.8 and found.interval[1] < 1.2
    low, high = bootstrap(better, ones)
    assert high - low > 5 * (found.interval[1] - found.interval[0])
    same = paired_difference(better, ones, better, ones)
    assert same == (0.0, (0.0, 0.0))


def test_ties_are_half_a_win() -> None:
    assert win_rate(np.array([1.0, 2.0]), np.array([1.0, 0.0])) == (0.5 + 1 + 1 + 1) / 4
    assert win_rate(np.array([0.1]), np.array([0.1])) == 0.5


def gaussians(count: int, seed: int, mean: float = 0.0, scale: float = 1.0, width: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, scale, (count, width))


def test_frechet_distance_is_the_closed_form_of_gaussians() -> None:
    """Of whitened features the moments are exact: |m - n|² + width (s - t)² for isotropic ones."""
    plain = gaussians(500, 0)
    plain = plain - plain.mean(0)
    values, vectors = np.linalg.eigh(np.cov(plain.T))
    white = plain @ vectors / np.sqrt(values)
    assert frechet_distance(white, white) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(white, 3 * white + 2.0) == pytest.approx(4 * 2.0**2 + 4 * (3 - 1) ** 2, rel=1e-9)
    rotated = white @ np.linalg.qr(gaussians(4, 5))[0]
    assert frechet_distance(white, rotated) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_covariances_that_do_not_commute() -> None:
    """Against the eigenvalues of the product itself, which is not symmetric."""
    one, other = gaussians(300, 1) @ gaussians(4, 2), gaussians(200, 3) @ gaussians(4, 4) + 1
    covariances = [np.cov(features.T) for features in (one, other)]
    roots = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).real)
    apart = one.mean(0) - other.mean(0)
    expected = apart @ apart + sum(np.trace(own) for own in covariances) - 2 * roots.sum()
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(other, one) == pytest.approx(expected, rel=1e-9)
    # Fewer samples than the features are wide: covariances without full rank are no trouble.
    assert frechet_distance(gaussians(5, 0, width=16), gaussians(7, 1, width=16)) > 0


def test_kernel_distance_is_the_unbiased_estimate() -> None:
    one, other = gaussians(5, 0, width=3), gaussians(6, 1, width=3, mean=0.5)

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / 3 + 1) ** 3)

    within = [np.mean([kernel(x, y) for x, y in itertools.permutations(features, 2)]) for features in (one, other)]
    across = np.mean([kernel(x, y) for x in one for y in other])
    found = kernel_distance(one, other)
    assert found.mean == pytest.approx(sum(within) - 2 * across, rel=1e-12) and found.deviation == 0


def test_kernel_distance_has_no_bias_and_sees_what_differs() -> None:
    alike = [kernel_distance(gaussians(40, seed), gaussians(40, seed + 1000)).mean for seed in range(200)]
    assert abs(np.mean(alike)) < 3 * np.std(alike) / 200**0.5
    assert min(alike) < 0 < max(alike)
    far = kernel_distance(gaussians(300, 0), gaussians(300, 1, mean=1.0), subsets=20, size=50)
    assert far.mean > 10 * np.std(alike) and far.deviation > 0
    assert far == kernel_distance(gaussians(300, 0), gaussians(300, 1, mean=1.0), subsets=20, size=50)


@pytest.mark.parametrize('distance', [frechet_distance, kernel_distance])
def test_one_sample_has_no_distance(distance: object) -> None:
    with pytest.raises(ValueError, match='at least two samples'):
        distance(gaussians(1, 0), gaussians(9, 0))
