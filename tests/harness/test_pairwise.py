"""A covering array has every pair, needs few combinations, and leaves nothing out of the two tiers."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from tests.harness.pairwise import covering, in_tiers, pairs_of, pairwise

DIMENSIONS: dict[str, tuple[Any, ...]] = {
    'family': ('llava', 'qwen2_5_vl'),
    'ranks': (1, 2),
    'stage': (0, 2, 3),
    'layout': ('padded', 'packed', 'shared_prefix'),
    'frozen': (None, 'vision_tower'),
}


def test_every_pair_is_there_in_few_combinations() -> None:
    every, found = [*product(*DIMENSIONS.values())], pairwise(**DIMENSIONS)
    assert set(found) <= set(every) and len(set(found)) == len(found)
    # Counted without the helper's own sets.
    names = [*DIMENSIONS]
    for i, first in enumerate(names):
        for j, second in enumerate(names[:i]):
            for one, other in product(DIMENSIONS[first], DIMENSIONS[second]):
                assert any(row[i] == one and row[j] == other for row in found), (first, one, second, other)
    # Three stages with three layouts need nine; 72 are the whole product.
    assert 9 <= len(found) <= 12


def test_it_is_the_same_each_time_and_loses_pairs_with_any_of_its_rows() -> None:
    found = pairwise(**DIMENSIONS)
    assert found == pairwise(**DIMENSIONS)
    wanted = set().union(*map(pairs_of, product(*DIMENSIONS.values())))
    lost = [wanted - set().union(*(pairs_of(row) for row in found if row != left)) for left in found]
    assert sum(map(bool, lost)) >= 9


def test_what_cannot_be_is_left_out_and_the_rest_is_covered() -> None:
    def allowed(ranks: int, stage: int, **_: Any) -> bool:
        return ranks == 2 or stage == 0

    found = pairwise(allowed, **DIMENSIONS)
    together = {(ranks, stage) for _, ranks, stage, *_ in found}
    assert together == {(1, 0), (2, 0), (2, 2), (2, 3)}
    assert {(family, layout) for family, _, _, layout, _ in found} == {
        *product(DIMENSIONS['family'], DIMENSIONS['layout'])
    }


def test_what_is_given_need_not_be_chosen_again() -> None:
    every = [*product('ab', 'xy')]
    assert covering(every) == every, 'of two dimensions every combination is a pair'
    assert covering(every, given=[('a', 'x'), ('b', 'y')]) == [('a', 'y'), ('b', 'x')]


def test_tiers_hold_every_combination_once() -> None:
    every = [*product('ab', 'xy', '12')]
    first = covering(every)
    found = in_tiers(every, first)
    assert [item.values for item in found] == every
    assert [item.values for item in found if not item.marks] == [row for row in every if row in first]
    assert {mark.name for item in found for mark in item.marks} == {'extended'} and len(first) < len(every)


@pytest.mark.parametrize(('first', 'words'), [([('c', 'x')], "not among the combinations: .*'c'"), ([], 'nothing is')])
def test_a_first_tier_that_does_not_exist_is_an_error(first: list[tuple[str, str]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        in_tiers(product('ab', 'xy'), first)
