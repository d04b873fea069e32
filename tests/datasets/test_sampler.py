"""The order of rows is a function of (seed, epoch); the cut into ranks and micro-batches never changes a step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice

import pytest

from align_anything.core.errors import DataError
from align_anything.datasets.mixture import Mixture, StreamedRow, StreamMixture
from align_anything.datasets.sampler import BatchShape, IndexSampler, Sampler, StreamSampler

# The same eight rows to a step, cut in every way: (per_device, accumulation, world_size).
CUTS = [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4), (4, 1, 2), (1, 1, 8)]


class Counting:
    """A stream of the numbers below `size`."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __iter__(self) -> Iterator[tuple[str, dict[str, int]]]:
        for number in range(self.size):
            yield f'row {number}', {'number': number}


def numbers(rows: list[StreamedRow]) -> list[tuple[int, int]]:
    return [(row.source_index, row.row['number']) for row in rows]


def samplers(per_device: int, accumulation: int, world_size: int, kind: str, size: int = 21) -> list[Sampler]:
    shapes = [BatchShape(per_device, accumulation, world_size, rank) for rank in range(world_size)]
    if kind == 'stream':
        return [StreamSampler(StreamMixture([Counting(size)], seed=3, buffer_size=4), shape) for shape in shapes]
    return [IndexSampler(Mixture([size], seed=3), shape) for shape in shapes]


def rows_of_steps(ranks: list[Sampler], epoch: int, start_step: int = 0) -> list[list[str]]:
    """Returns the rows of each step over all ranks, checking that every rank yields `accumulation` lists a step."""
    accumulation = ranks[0].shape.accumulation
    lists = [list(sampler.micro_batches(epoch, start_step)) for sampler in ranks]
    assert len({len(of_rank) for of_rank in lists}) == 1, 'every rank runs the same number of micro-batches'
    assert len(lists[0]) % accumulation == 0
    steps = []
    for first in range(0, len(lists[0]), accumulation):
        cut = [row for of_rank in lists for micro in of_rank[first : first + accumulation] for row in micro]
        steps.append(sorted(map(str, cut)))
    return steps


@pytest.mark.parametrize('kind', ['index', 'stream'])
def test_a_step_holds_the_same_rows_for_any_cut(kind: str) -> None:
    expected = rows_of_steps(samplers(*CUTS[0], kind), epoch=1)
    assert [len(step) for step in expected] == [8, 8, 5]  # 21 rows, 8 to a step: the ragged last one is kept
    assert len({row for step in expected for row in step}) == 21
    for cut in CUTS[1:]:
        assert rows_of_steps(samplers(*cut, kind), epoch=1) == expected


@pytest.mark.parametrize('kind', ['index', 'stream'])
def test_resuming_goes_on_where_an_uninterrupted_run_is(kind: str) -> None:
    for cut in CUTS:
        whole = rows_of_steps(samplers(*cut, kind), epoch=2)
        for start_step in range(4):
            assert rows_of_steps(samplers(*cut, kind), epoch=2, start_step=start_step) == whole[start_step:]


@pytest.mark.parametrize('kind', ['index', 'stream'])
def test_the_ragged_step_is_spread_evenly_and_leaves_empty_lists(kind: str) -> None:
    # 21 rows, 2 x 2 x 2 = 8 to a step: the last holds 5. Its first micro-batches take 2 + 2, the second 1 + 0.
    lists = [list(sampler.micro_batches(0))[-2:] for sampler in samplers(2, 2, 2, kind)]
    assert [[len(micro) for micro in of_rank] for of_rank in lists] == [[2, 1], [2, 0]]


def test_steps_per_epoch() -> None:
    shape = BatchShape(2, 2, 2)
    for size, steps in ((1, 1), (8, 1), (9, 2), (21, 3)):
        sampler = IndexSampler(Mixture([size], seed=0), shape)
        assert sampler.steps_in(0) == steps
        assert len(list(sampler.micro_batches(0))) == steps * 2
    assert StreamSampler(StreamMixture([Counting(9)], seed=0), shape).steps_in(0) is None


def test_the_rows_of_a_step_are_those_of_all_ranks() -> None:
    ranks = samplers(1, 2, 4, 'index')
    order, size = ranks[0].mixture.order(5).tolist(), ranks[0].shape.global_size
    for step, rows in enumerate(rows_of_steps(ranks, epoch=5)):
        assert sorted(map(str, order[step * size : (step + 1) * size])) == rows


def test_order_depends_on_seed_and_epoch_only() -> None:
    order = Mixture([100], seed=1).order(0).tolist()
    assert sorted(order) == list(range(100))
    assert order == Mixture([100], seed=1).order(0).tolist()
    assert order == Mixture([40, 60], seed=1).order(0).tolist(), 'concatenation is shuffled as a whole'
    assert order != Mixture([100], seed=1).order(1).tolist()
    assert order != Mixture([100], seed=2).order(0).tolist()
    assert Mixture([40, 60], seed=1, shuffle=False).order(7).tolist() == list(range(100))


PINNED_ORDER = [2, 7, 1, 5, 0, 4, 3, 6]


def test_the_order_is_pinned() -> None:
    """A changed order would make checkpoints of earlier versions resume on other rows."""
    assert Mixture([8], seed=42).order(1).tolist() == PINNED_ORDER


def test_weights_set_the_share_of_each_source() -> None:
    # 60 rows, weights 1 : 2 : 3 -> 10, 20 and 30 samples, whatever the sizes.
    mixture = Mixture([6, 44, 10], seed=4, weights=[1, 2, 3])
    for epoch in range(3):
        sampled = mixture.order(epoch).tolist()
        counts = Counter(0 if row < 6 else 1 if row < 50 else 2 for row in sampled)
        assert counts == {0: 10, 1: 20, 2: 30}
        assert sampled != sorted(sampled)
    per_row = Counter(mixture.order(0).tolist())
    # 10 samples of 6 rows without replacement until exhausted: each once, four of them twice. 30 of 10: each thrice.
    assert sorted(per_row[row] for row in range(6)) == [1, 1, 2, 2, 2, 2]
    assert all(per_row[row] == 3 for row in range(50, 60))
    assert max(per_row[row] for row in range(6, 50)) == 1


def test_a_large_part_with_a_small_weight_is_seen_through_over_the_epochs() -> None:
    # 40 rows at a quarter of 80 -> 20 of them an epoch, so two epochs see each once.
    mixture = Mixture([40, 40], seed=4, weights=[1, 3])
    seen = Counter(row for epoch in range(2) for row in mixture.order(epoch).tolist() if row < 40)
    assert seen == dict.fromkeys(range(40), 1)
    assert mixture.order(1).tolist() == Mixture([40, 40], seed=4, weights=[1, 3]).order(1).tolist()


def test_weights_that_leave_a_part_out() -> None:
    assert set(Mixture([3, 5], seed=0, weights=[0, 1]).order(0).tolist()) == {3, 4, 5, 6, 7}
    stream = StreamMixture([Counting(3), Counting(5)], seed=0, weights=[0, 1]).rows(0)
    assert sorted(numbers(list(stream))) == [(1, number) for number in range(5)]


@pytest.mark.parametrize('weights', [[1.0], [1.0, -1.0], [0.0, 0.0], [1.0, float('nan')], [1.0, float('inf')]])
def test_bad_weights(weights: list[float]) -> None:
    with pytest.raises(DataError, match='weights'):
        Mixture([3, 3], seed=0, weights=weights)
    with pytest.raises(DataError, match='weights'):
        StreamMixture([Counting(3), Counting(3)], seed=0, weights=weights)


def test_concatenated_streams_give_every_row_once_one_after_the_other() -> None:
    mixed = StreamMixture([Counting(2), Counting(3)], seed=0, shuffle=False)
    assert numbers(list(mixed.rows(0))) == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    assert [row.number for row in mixed.rows(0)] == [0, 1, 2, 3, 4]
    shuffled = [
        numbers(list(StreamMixture([Counting(2), Counting(40)], 0, buffer_size=8).rows(epoch))) for epoch in (0, 0, 1)
    ]
    assert shuffled[0] == shuffled[1] != shuffled[2]
    assert sorted(shuffled[0]) == sorted(shuffled[2]) == sorted([(0, 0), (0, 1), *((1, row) for row in range(40))])


TURNS = [0, 1, 2, 0, 1, 2, 1, 2, 1, 1]


def test_in_turn_each_part_gives_a_row_until_it_is_exhausted() -> None:
    sizes = [2, 5, 3]
    mixture = Mixture(sizes, seed=0, in_turn=True)
    orders = [mixture.order(epoch).tolist() for epoch in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    for order in orders:
        assert sorted(order) == list(range(10))
        assert [0 if row < 2 else 1 if row < 7 else 2 for row in order] == TURNS
    plain = Mixture(sizes, seed=0, shuffle=False, in_turn=True).order(0).tolist()
    assert plain == [0, 2, 7, 1, 3, 8, 4, 9, 5, 6]


def test_streams_in_turn_keep_their_turns_when_they_are_shuffled() -> None:
    def rows(epoch: int) -> list[tuple[int, int]]:
        streams = [Counting(2), Counting(5), Counting(3)]
        return numbers(list(StreamMixture(streams, 0, in_turn=True, buffer_size=9).rows(epoch)))

    assert rows(0) == rows(0) != rows(1)
    for epoch in (0, 1):
        assert [source for source, _ in rows(epoch)] == TURNS
        assert sorted(rows(epoch)) == sorted(
            (source, row) for source, size in enumerate((2, 5, 3)) for row in range(size)
        )


def test_weighted_streams_start_again_until_each_was_read_through() -> None:
    mixed = numbers(list(StreamMixture([Counting(5), Counting(60)], seed=0, weights=[1, 1], shuffle=False).rows(0)))
    of_first = [number for source, number in mixed if source == 0]
    assert [number for source, number in mixed if source == 1] == list(range(60))
    assert of_first == [number % 5 for number in range(len(of_first))]
    # One sample in two of each source: as many of the first as of the 60 of the second, give or take four deviations.
    assert abs(len(of_first) - 60) < 4 * 120**0.5 / 2 * 2**0.5
    endless = StreamMixture([Counting(0), Counting(9)], seed=0, weights=[1, 1]).rows(0)
    with pytest.raises(DataError, match='number 1 of the mixture has no rows'):
        list(islice(endless, 100))
