"""Chooses a few of many combinations, so that every pair of values that occurs together still does.

Most of what breaks takes two settings to break: a layout on two ranks, a stage with a frozen component. `make test`
runs a covering array of pairs, and `make extended` every other combination:

    RUNS = pairwise(family=('llava', 'qwen2_vl'), ranks=(1, 2), stage=(0, 2, 3))

    @pytest.mark.parametrize(('family', 'ranks', 'stage'), in_tiers(product(...), RUNS))
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import combinations, product
from typing import Any

import pytest

Combination = tuple[Any, ...]


def pairwise(allowed: Callable[..., bool] = lambda **values: True, /, **dimensions: Sequence[Any]) -> list[Combination]:
    """A covering array over named dimensions: tuples of one value each, in the order in which they are named.

    Combinations that `allowed` refuses are left out; pairs that only those have are covered by none.
    """
    every = product(*dimensions.values())
    return covering(values for values in every if allowed(**dict(zip(dimensions, values, strict=True))))


def covering(every: Iterable[Combination], given: Iterable[Combination] = ()) -> list[Combination]:
    """Some of the combinations, which have every pair of values that any has; the same ones for the same order.

    Pairs that `given` has are covered already. Greedy: next comes what has the most pairs that none before it has.
    """
    left = {combination: pairs_of(combination) for combination in every}
    missing = set().union(*left.values()) - set().union(*map(pairs_of, given))
    chosen = []
    while missing:
        # The first of the best, so that nothing depends on hashes.
        best = max(left, key=lambda combination: len(left[combination] & missing))
        chosen.append(best)
        missing -= left[best]
    return chosen


def pairs_of(combination: Combination) -> set[tuple[int, Any, int, Any]]:
    """The pairs of values in it, each with the places of both."""
    return {(i, one, j, other) for (i, one), (j, other) in combinations(enumerate(combination), 2)}


def in_tiers(every: Iterable[Combination], first: Collection[Combination]) -> list[Any]:
    """Parameters for `pytest.mark.parametrize`: `first` as they are, all others marked `extended`.

    Raises ValueError for one of `first` that is not among `every`, and for an empty `first`: a test that leaves the
    first tier as a whole is marked as a whole.
    """
    every = [*every]
    unknown = [combination for combination in first if combination not in every]
    if unknown or not first:
        raise ValueError(f'not among the combinations: {unknown}' if unknown else 'nothing is left to the first tier')
    return [pytest.param(*each, marks=() if each in first else pytest.mark.extended) for each in every]


def first_of(every: Iterable[Any], *first: Any) -> list[Any]:
    """As `in_tiers`, for a single parameter: the values named `first`, then all others, marked `extended`."""
    return in_tiers(((value,) for value in every), [(value,) for value in first])
