"""Fills micro-batches to a number of tokens and gives every rank nearly equal work."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import chain
from typing import Any, NamedTuple

from align_anything.core.types import Cost
from align_anything.datasets.balancing import Balancer, partition
from align_anything.datasets.sampler import BatchShape

GROUPED_STEPS = 16
"""Steps' worth of rows that are sorted by length together: enough to pair like with like, few enough to stay random."""

LIKE_STEPS = 8
"""Steps' worth of micro-batches of one kind each among which those of like work are looked for."""


class Sized(NamedTuple):
    """A row with what it takes.

    Attributes:
        row: what the dataset is indexed by.
        cost: what it takes of a micro-batch.
        group, used: where the row stands in a stream: which row begins its group, and how many rows of the group
            have been used once it is.
    """

    row: Any
    cost: Cost
    group: int = 0
    used: int = 0


@dataclass(frozen=True)
class Filling:
    """How rows are put into the micro-batches of optimizer steps.

    Attributes:
        shape: accumulation, ranks and rank; its `per_device` is not used.
        budget: size of a micro-batch. A row that takes more makes one of its own.
        group_by_length: bring rows of like length together, as padded rows want.
    """

    shape: BatchShape
    budget: int
    group_by_length: bool = False

    @property
    def slots(self) -> int:
        """Micro-batches of a step over all ranks."""
        return self.shape.world_size * self.shape.accumulation

    def groups(self, rows: Iterable[Sized]) -> Iterator[list[Sized]]:
        """Yields the rows in their order; grouped by length, some steps' worth at a time with the longest first."""
        least = GROUPED_STEPS * self.slots * self.budget if self.group_by_length else 0
        group: list[Sized] = []
        held = 0
        for item in rows:
            group.append(item)
            held += item.cost.size
            if held >= least:
                yield sorted(group, key=_length, reverse=True)
                group, held = [], 0
        if group:
            yield sorted(group, key=_length, reverse=True)

    def steps(self, rows: Iterable[Sized]) -> Iterator[list[list[Sized]]]:
        """Yields, for each step, `slots` micro-batches, rank by rank. A step takes consecutive rows.

        Rows of several kinds do not go into one micro-batch: a step takes micro-batches of like work, which are filled
        from the rows of some steps.
        """
        rows = iter(rows)
        first = next(rows, None)
        if first is None:
            return
        rows = chain([first], rows)
        if first.cost.kind is not None:
            for bins in self._of_like_work(rows):
                yield self._spread(bins)
            return
        bins = self._bins()
        for item in rows:
            bin_ = _first(sorted(bins, key=lambda bin_: bin_.cost.size), item)
            if bin_ is None:
                yield self._spread(bins)
                bins = self._bins()
                bin_ = bins[0]
            bin_.add(item)
        if any(bin_.items for bin_ in bins):
            yield self._spread(bins)

    def _of_like_work(self, rows: Iterable[Sized]) -> Iterator[list[_Bin]]:
        """Yields the micro-batches of each step, each of one kind, filled as the rows of that kind come."""
        filling: dict[Hashable, _Bin] = {}
        full: list[_Bin] = []
        for item in rows:
            bin_ = filling.setdefault(item.cost.kind, _Bin(self.budget))
            if not bin_.takes(item):
                full.append(bin_)
                bin_ = filling[item.cost.kind] = _Bin(self.budget)
            bin_.add(item)
            if len(full) == LIKE_STEPS * self.slots:
                yield from self._chunks(full)
                full = []
        full += filling.values()
        while len(full) % self.slots and any(len(bin_.items) > 1 for bin_ in full):
            # What is left of a kind is split, so that no rank waits for the others in the last step.
            most = max(full, key=lambda bin_: (len(bin_.items) > 1) * bin_.cost.work)
            full = [*(bin_ for bin_ in full if bin_ is not most), *most.halves()]
        yield from self._chunks(full)

    def _chunks(self, bins: list[_Bin]) -> Iterator[list[_Bin]]:
        """The micro-batches of steps, like with like, about in the order in which they were filled."""
        order = sorted(range(len(bins)), key=lambda number: -bins[number].cost.work)
        chunks = [order[start : start + self.slots] for start in range(0, len(order), self.slots)]
        for chunk in sorted(chunks, key=lambda chunk: sum(chunk) / len(chunk)):
            yield [*(bins[number] for number in chunk), *self._bins()[len(chunk) :]]

    def share(self, step: list[list[Sized]]) -> list[list[Any]]:
        """Returns the rows of this rank's micro-batches of a step."""
        count = self.shape.accumulation
        own = step[self.shape.rank * count : (self.shape.rank + 1) * count]
        return [[item.row for item in micro] for micro in own]

    def _bins(self) -> list[_Bin]:
        return [_Bin(self.budget) for _ in range(self.slots)]

    def _spread(self, bins: list[_Bin]) -> list[list[Sized]]:
        """The same rows with the work evened out: among micro-batches where the budget allows, and among ranks."""
        items = [item for bin_ in bins for item in bin_.items]
        bins = self._differenced(items) or self._evened(items) or bins
        of_ranks = partition([bin_.cost.work for bin_ in bins], self.shape.world_size, equal_sizes=True)
        held = [bins[number].items for own in of_ranks for number in own]
        numbers = iter(range(len(items)))
        start = [[next(numbers) for _ in own] for own in held]
        flat = [item for own in held for item in own]

        def fits(own: Sequence[int]) -> bool:
            return len(own) < 2 or reduce(Cost.beside, [flat[number].cost for number in own]).size <= self.budget

        work, towers = [item.cost.work for item in flat], [item.cost.towers for item in flat]
        evened = Balancer(work, towers, start, self.shape.world_size, fits).run()
        return [[flat[number] for number in own] for own in evened]

    def _differenced(self, items: list[Sized]) -> list[_Bin] | None:
        """Micro-batches by the largest differencing method, where that keeps the budget."""
        bins = self._bins()
        for bin_, own in zip(bins, partition([item.cost.work for item in items], self.slots), strict=True):
            for number in own:
                if not bin_.takes(items[number]):
                    return None
                bin_.add(items[number])
        return bins

    def _evened(self, items: list[Sized]) -> list[_Bin] | None:
        # Longest processing time first: within 4/3 of the best possible largest load (Graham, 1969).
        bins = self._bins()
        for item in sorted(items, key=lambda item: -item.cost.work):
            bin_ = _first(sorted(bins, key=lambda bin_: bin_.cost.work), item)
            if bin_ is None:
                return None
            bin_.add(item)
        return bins


def _length(item: Sized) -> tuple[int, int]:
    # Where nothing is padded all rows are of length one, and those that take the same go together.
    return item.cost.length, item.cost.size


def _first(bins: Iterable[_Bin], item: Sized) -> _Bin | None:
    return next((bin_ for bin_ in bins if bin_.takes(item)), None)


class _Bin:
    """A micro-batch while it is filled."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self.items: list[Sized] = []
        self.cost = Cost(0, 0)

    def halves(self) -> tuple[_Bin, _Bin]:
        """Its items in two."""
        made = _Bin(self._budget), _Bin(self._budget)
        for number, item in enumerate(self.items):
            made[number % 2].add(item)
        return made

    def takes(self, item: Sized) -> bool:
        return not self.items or self.cost.beside(item.cost).size <= self._budget

    def add(self, item: Sized) -> None:
        self.items.append(item)
        self.cost = self.cost.beside(item.cost)
