"""Budgets are kept, work is even, and every rank plans the same; of streams too, whose rows are measured on the way."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest

from align_anything.core.errors import DataError
from align_anything.core.types import Cost
from align_anything.datasets.budget import BudgetSampler, RowCosts, StreamBudgetSampler
from align_anything.datasets.filling import Filling, Sized
from align_anything.datasets.mixture import Mixture, StreamedRow, StreamMixture
from align_anything.datasets.sampler import BatchShape

ROWS, BUDGET = 400, 1000


def cost(tokens: int, work: float = 0.0, padded: bool = False) -> Cost:
    """What one sequence takes: a row as long as the longest where rows are padded, else only its own tokens."""
    return Cost(1, tokens, work) if padded else Cost(tokens, 1, work)


def costs(padded: bool = False, rows: int = ROWS, seed: int = 0) -> RowCosts:
    """Text rows, and every fifth one with an image that costs three times its tokens again."""
    generator = random.Random(seed)
    tokens = [generator.randint(10, 200) for _ in range(rows)]
    work = [float(length) * (4 if number % 5 == 0 else 1) for number, length in enumerate(tokens)]
    return [cost(*taken, padded) for taken in zip(tokens, work, strict=True)]


def filling(rank: int = 0, world: int = 2, accumulation: int = 2, **options: Any) -> Filling:
    return Filling(BatchShape(1, accumulation, world, rank), BUDGET, **options)


def sampler(*cut: int, table: RowCosts | None = None, padded: bool = False, **options: Any) -> BudgetSampler:
    table = table or costs(padded)
    return BudgetSampler(Mixture([len(table)], seed=3), table, filling(*cut, **options))


class Costly:
    """A stream of the rows of `costs()`; it counts those that were measured."""

    def __init__(self, padded: bool = False) -> None:
        self.table, self.measured = costs(padded), 0

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for row in range(ROWS):
            yield f'row {row}', {'row': row}

    def measure(self, rows: Iterator[StreamedRow]) -> Iterator[Sized]:
        while chunk := list(islice(rows, 7)):
            for item in chunk:
                self.measured += 1
                yield Sized(item, self.table[item.row['row']])


def streamed(*cut: int, padded: bool = False, **options: Any) -> StreamBudgetSampler:
    source = Costly(padded)
    return StreamBudgetSampler(StreamMixture([source], 3, buffer_size=40), source.measure, filling(*cut, **options))


KINDS = {'index': sampler, 'stream': streamed}
kinds = pytest.mark.parametrize('kind', KINDS)
layouts = pytest.mark.parametrize('options', [{}, {'padded': True, 'group_by_length': True}], ids=['flat', 'padded'])


def number(row: int | StreamedRow) -> int:
    return row.row['row'] if isinstance(row, StreamedRow) else row


def steps_of_rank(kind: str, *cut: int, epoch: int = 1, start: int = 0, **options: Any) -> list[list[list[int]]]:
    """The rows of each micro-batch of each step of one rank."""
    made = KINDS[kind](*cut, **options)
    batches = [[number(row) for row in micro] for micro in made.micro_batches(epoch, start)]
    count = made.shape.accumulation
    assert len(batches) % count == 0
    return [batches[first : first + count] for first in range(0, len(batches), count)]


@kinds
@layouts
def test_every_row_once_within_the_budget_and_the_same_steps_for_every_rank(kind: str, options: dict) -> None:
    tokens, seen = [item.size for item in costs()], []
    ranks = [steps_of_rank(kind, rank, **options) for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1]) > 5
    for micro in (micro for steps in ranks for step in steps for micro in step):
        lengths = [tokens[row] for row in micro]
        taken = max(lengths, default=0) * len(lengths) if options else sum(lengths)
        assert taken <= BUDGET
        seen += micro
    assert sorted(seen) == list(range(ROWS))


@kinds
@layouts
def test_a_step_holds_the_same_rows_for_any_cut(kind: str, options: dict) -> None:
    def steps(*cuts: tuple[int, int, int]) -> list[list[int]]:
        of_ranks = [steps_of_rank(kind, *cut, **options) for cut in cuts]
        return [
            sorted(row for step in parts for micro in step for row in micro) for parts in zip(*of_ranks, strict=True)
        ]

    whole = steps((0, 1, 4))
    assert whole == steps((0, 2, 2), (1, 2, 2)) == steps(*((rank, 4, 1) for rank in range(4)))


@kinds
def test_ranks_get_nearly_equal_work_in_every_full_step(kind: str) -> None:
    work = [item.work for item in costs()]
    ranks = [steps_of_rank(kind, rank) for rank in range(2)]
    ratios = []
    for parts in list(zip(*ranks, strict=True))[:-1]:
        loads = [sum(work[row] for micro in step for row in micro) for step in parts]
        ratios.append(max(loads) / (sum(loads) / 2))
    assert max(ratios) <= 1.1 and len(ratios) > 5


def test_the_rows_of_a_step_follow_the_order_of_the_epoch() -> None:
    first, again, other = sampler().plan(0), sampler().plan(0), sampler().plan(1)
    assert first == again != other
    order = Mixture([ROWS], seed=3).order(0).tolist()
    counted = 0
    for step in first:
        rows = {item.row for micro in step for item in micro}
        assert rows == set(order[counted : counted + len(rows)])
        counted += len(rows)


@kinds
@layouts
def test_resuming_starts_at_a_step(kind: str, options: dict) -> None:
    whole = steps_of_rank(kind, 1, epoch=2, **options)
    for start in (1, 3, len(whole) - 1, len(whole)):
        assert steps_of_rank(kind, 1, epoch=2, start=start, **options) == whole[start:]


@layouts
def test_a_stream_that_is_told_the_place_of_a_step_measures_little_before_it(options: dict) -> None:
    # A budget so small that the stream has several groups.
    def make(source: Costly) -> StreamBudgetSampler:
        fills = Filling(BatchShape(1, 1, 1, 0), 400, bool(options))
        return StreamBudgetSampler(StreamMixture([source], 3, buffer_size=40), source.measure, fills)

    known = make(Costly(bool(options)))
    steps, places = [], {}
    for step, micro in enumerate(known.micro_batches(1)):
        steps.append(micro)
        places[step + 1] = known.cursor(1, step + 1)
    for start in (1, 2, len(steps) // 2, len(steps)):
        source = Costly(bool(options))
        resumed = make(source)
        resumed.resume_at(1, start, places[start])
        assert list(resumed.micro_batches(1, start)) == steps[start:]
        unused = sum(len(micro) for micro in steps[start:])
        assert source.measured - unused <= (1 if not options else 16 * 400 / 10)
    assert source.measured < ROWS


@pytest.mark.parametrize('padded', [False, True])
def test_a_row_over_the_budget_stands_alone_and_unusable_rows_are_left_out(padded: bool) -> None:
    table = [cost(5000, 5000.0, padded), cost(10, 10.0, padded), None, cost(20, 20.0, padded)]
    plan = sampler(0, 1, 1, table=table).plan(0)
    micro_batches = [sorted(item.row for item in micro) for step in plan for micro in step]
    assert [0] in micro_batches
    assert sorted(row for micro in micro_batches for row in micro) == [0, 1, 3]


def test_nothing_usable_is_an_error() -> None:
    with pytest.raises(DataError, match='not one row'):
        sampler(table=[None, None])


@pytest.mark.parametrize('padded', [False, True])
def test_grouping_sorts_within_groups_only(padded: bool) -> None:
    # Groups of at least 16 steps x 1 micro-batch x 1 token.
    fills = Filling(BatchShape(1), 1, group_by_length=True)
    rows = [Sized(number, cost(length, padded=padded)) for number, length in enumerate([5, 7, 5, 9, 8, 3])]
    groups = [[item.row for item in group] for group in fills.groups(rows)]
    assert groups == [[1, 0, 2], [3, 4], [5]]
