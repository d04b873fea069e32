"""Budgets are kept, work is even, and every rank plans the same."""

from __future__ import annotations

import random

import pytest

from align_anything.core.errors import DataError
from align_anything.datasets.budget import BudgetSampler, grouped, measured
from align_anything.datasets.mixture import Mixture
from align_anything.datasets.sampler import BatchShape


def costs(rows: int = 400, seed: int = 0):
    """Text rows, and every fifth one with a picture that costs three times its tokens again."""
    generator = random.Random(seed)
    tokens = [generator.randint(10, 200) for _ in range(rows)]
    work = [float(length) * (4 if number % 5 == 0 else 1) for number, length in enumerate(tokens)]
    return measured(tokens, work)


def sampler(rank: int = 0, world: int = 2, accumulation: int = 2, table=None, **options) -> BudgetSampler:
    table = table or costs()
    mixture = Mixture([len(table.tokens)], seed=3)
    return BudgetSampler(mixture, table, BatchShape(1, accumulation, world, rank), 1000, **options)


@pytest.mark.parametrize('padded', [False, True])
@pytest.mark.parametrize('group', [False, True])
def test_every_row_once_within_the_budget_and_the_same_steps_for_every_rank(padded, group):
    table, seen, lists = costs(), [], []
    for rank in range(2):
        own = list(sampler(rank, padded=padded, group_by_length=group).micro_batches(epoch=1))
        assert len(own) == 2 * sampler(rank, padded=padded, group_by_length=group).steps_in(1)
        lists.append(own)
        for micro in own:
            lengths = [int(table.tokens[row]) for row in micro]
            assert (max(lengths, default=0) * len(lengths) if padded else sum(lengths)) <= 1000
            seen += micro
    assert sorted(seen) == list(range(400)) and len(lists[0]) == len(lists[1])


def test_ranks_get_nearly_equal_work_in_every_full_step():
    table, plan = costs(), sampler().plan(0)
    ratios = []
    for step in plan[:-1]:
        loads = [
            sum(float(table.work[row]) for micro in step[rank * 2 : rank * 2 + 2] for row in micro) for rank in (0, 1)
        ]
        ratios.append(max(loads) / (sum(loads) / 2))
    assert max(ratios) <= 1.1 and len(ratios) > 5


def test_the_rows_of_a_step_follow_the_order_of_the_epoch():
    first, again, other = sampler().plan(0), sampler().plan(0), sampler().plan(1)
    assert first == again != other
    order = Mixture([400], seed=3).order(0).tolist()
    counted = 0
    for step in first:
        rows = {row for micro in step for row in micro}
        assert rows == set(order[counted : counted + len(rows)])
        counted += len(rows)


def test_resuming_starts_at_a_step():
    whole = list(sampler().micro_batches(2))
    assert list(sampler().micro_batches(2, start_step=3)) == whole[6:]


def test_a_row_over_the_budget_stands_alone_and_unusable_rows_are_left_out():
    plan = sampler(world=1, accumulation=1, table=measured([5000, 10, 0, 20], [5000.0, 10.0, 0.0, 20.0])).plan(0)
    micro_batches = [sorted(micro) for step in plan for micro in step]
    assert [0] in micro_batches and all(2 not in micro for micro in micro_batches)
    assert sorted(row for micro in micro_batches for row in micro) == [0, 1, 3]


def test_nothing_usable_is_an_error():
    with pytest.raises(DataError, match='not one row'):
        sampler(table=measured([0, 0], [0.0, 0.0]))


def test_grouping_sorts_within_groups_only():
    assert grouped([4, 1, 3, 0, 2], lengths=[5, 1, 9, 4, 7], size=3) == [4, 3, 1, 2, 0]
