"""How sure a mean is, and the difference of two: bootstrap intervals over rows, in float64."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

Interval = tuple[float, float]
LEVEL = 0.95
TIE = 0.5


class Difference(NamedTuple):
    """How much higher one mean is than another over the same rows, with its interval."""

    value: float
    interval: Interval


def ratio(sums: np.ndarray, counts: np.ndarray) -> float:
    """Returns the sum of `sums (rows,)` over that of `counts (rows,)`. With counts of 1 it is the mean."""
    return float(np.sum(sums, dtype=np.float64) / np.sum(counts, dtype=np.float64))


def bootstrap(
    sums: np.ndarray, counts: np.ndarray, *, samples: int = 1000, level: float = LEVEL, seed: int = 0
) -> Interval:
    """Returns the percentile bootstrap interval of `ratio` (Efron, 1979), rows being what is resampled.

    Args:
        sums: what is added up of each row, `(rows,)`; the responses to one prompt are one row, for they are alike.
        counts: what it is divided by, `(rows,)`.
        samples: how many times the rows are resampled.
        level: the probability that the interval is meant to hold the true value with.
        seed: of the resampling.
    """
    return _between(_resampled(np.stack([sums, counts]), samples, seed)[:, 0], level)


def paired_difference(
    sums: np.ndarray,
    counts: np.ndarray,
    other_sums: np.ndarray,
    other_counts: np.ndarray,
    *,
    samples: int = 1000,
    level: float = LEVEL,
    seed: int = 0,
) -> Difference:
    """Returns the ratio of one model less that of another over the same rows, both resampled together.

    What makes a row hard for both falls out, so the interval is narrower than those of the two ratios would have it.
    Arguments are those of `bootstrap`, all `(rows,)`.
    """
    both = _resampled(np.stack([sums, counts, other_sums, other_counts]), samples, seed)
    value = ratio(sums, counts) - ratio(other_sums, other_counts)
    return Difference(value, _between(both[:, 0] - both[:, 1], level))


def win_rate(scores: np.ndarray, others: np.ndarray) -> float:
    """Returns how often a score of `scores (n,)` is above one of `others (m,)`, over all pairs; ties are half."""
    ahead = np.asarray(scores, np.float64)[:, None] - np.asarray(others, np.float64)[None]
    return float(((ahead > 0) + TIE * (ahead == 0)).mean())


def _resampled(values: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """The ratios of resampled rows, `(samples, ratios)`; `values` are sums and counts in turn, `(2 * ratios, rows)`.

    A resampling without anything to divide by, all of its rows having abstained, is left out.
    """
    values, random = np.asarray(values, np.float64), np.random.default_rng(seed)
    rows = values.shape[1]
    drawn = np.stack([values[:, random.integers(rows, size=rows)].sum(1) for _ in range(samples)])
    sums, counts = drawn[:, 0::2], drawn[:, 1::2]
    usable = (counts > 0).all(1)
    return sums[usable] / counts[usable]


def _between(values: np.ndarray, level: float) -> Interval:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
