"""Fills micro-batches to a number of tokens and gives every rank nearly equal work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from align_anything.datasets.sampler import BatchShape

GROUPED_STEPS = 16
"""Steps' worth of rows that are sorted by length together: enough to pair like with like, few enough to stay random."""


class Sized(NamedTuple):
    """A row with what it takes.

    Attributes:
        row: what the dataset is indexed by.
        tokens: length of the encoded row, media tokens included.
        work: its share of the computation, in units of one token through the language model.
        group, used: where the row stands in a stream: which row begins its group, and how many rows of the group
            have been used once it is.
    """

    row: Any
    tokens: int
    work: float
    group: int = 0
    used: int = 0


@dataclass(frozen=True)
class Filling:
    """How rows are put into the micro-batches of optimizer steps.

    Attributes:
        shape: accumulation, ranks and rank; its `per_device` is not used.
        budget: tokens of a micro-batch. A row longer than that makes one of its own.
        padded: whether a micro-batch costs its longest row times its rows, as the padded layout does.
        group_by_length: bring rows of like length together, as padded rows want.
    """

    shape: BatchShape
    budget: int
    padded: bool = False
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
            held += item.tokens
            if held >= least:
                yield sorted(group, key=lambda item: -item.tokens)
                group, held = [], 0
        if group:
            yield sorted(group, key=lambda item: -item.tokens)

    def steps(self, rows: Iterable[Sized]) -> Iterator[list[list[Sized]]]:
        """Yields, for each step, `slots` micro-batches, rank by rank. A step takes consecutive rows."""
        bins = self._bins()
        for item in rows:
            bin_ = min((bin_ for bin_ in bins if bin_.takes(item)), key=lambda bin_: bin_.size, default=None)
            if bin_ is None:
                yield self._spread(bins)
                bins = self._bins()
                bin_ = bins[0]
            bin_.add(item)
        if any(bin_.items for bin_ in bins):
            yield self._spread(bins)

    def share(self, step: list[list[Sized]]) -> list[list[Any]]:
        """Returns the rows of this rank's micro-batches of a step."""
        count = self.shape.accumulation
        own = step[self.shape.rank * count : (self.shape.rank + 1) * count]
        return [[item.row for item in micro] for micro in own]

    def _bins(self) -> list[_Bin]:
        return [_Bin(self.budget, self.padded) for _ in range(self.slots)]

    def _spread(self, bins: list[_Bin]) -> list[list[Sized]]:
        """The same rows with the work evened out: among micro-batches where the budget allows, then among ranks."""
        items = [item for bin_ in bins for item in bin_.items]
        return self._by_rank(self._evened(items) or bins)

    def _evened(self, items: list[Sized]) -> list[_Bin] | None:
        # Longest processing time first: within 4/3 of the best possible largest load (Graham, 1969).
        bins = self._bins()
        for item in sorted(items, key=lambda item: -item.work):
            bin_ = min((bin_ for bin_ in bins if bin_.takes(item)), key=lambda bin_: bin_.work, default=None)
            if bin_ is None:
                return None
            bin_.add(item)
        return bins

    def _by_rank(self, bins: list[_Bin]) -> list[list[Sized]]:
        ranks: list[list[_Bin]] = [[] for _ in range(self.shape.world_size)]
        for bin_ in sorted(bins, key=lambda bin_: -bin_.work):
            waiting = [held for held in ranks if len(held) < self.shape.accumulation]
            min(waiting, key=lambda held: sum(other.work for other in held)).append(bin_)
        return [bin_.items for held in ranks for bin_ in held]


class _Bin:
    """A micro-batch while it is filled. `size` is what it costs of the budget, `work` what it takes to compute."""

    def __init__(self, budget: int, padded: bool) -> None:
        self._budget, self._padded = budget, padded
        self.items: list[Sized] = []
        self.size, self.work, self._longest = 0, 0.0, 0

    def takes(self, item: Sized) -> bool:
        return not self.items or self._size_with(item) <= self._budget

    def add(self, item: Sized) -> None:
        self.size = self._size_with(item)
        self._longest = max(self._longest, item.tokens)
        self.items.append(item)
        self.work += item.work

    def _size_with(self, item: Sized) -> int:
        if self._padded:
            return max(self._longest, item.tokens) * (len(self.items) + 1)
        return self.size + item.tokens
