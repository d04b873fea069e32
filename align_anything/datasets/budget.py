"""Micro-batches filled to a number of tokens instead of a number of rows, with equal work on every rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from align_anything.core.errors import DataError
from align_anything.datasets.mixture import Mixture
from align_anything.datasets.sampler import BatchShape

GROUPED_STEPS = 16
"""Steps' worth of rows that are sorted by length together: enough to pair like with like, few enough to stay random."""


@dataclass(frozen=True)
class RowCosts:
    """What each row of a dataset takes, measured once by encoding it.

    Attributes:
        tokens: length of the encoded row, media tokens included, `(rows,)`; 0 for a row that cannot be used.
        work: its share of the computation, in units of one token through the language model, `(rows,)`.
    """

    tokens: Tensor
    work: Tensor


class BudgetSampler:
    """Micro-batches of at most `budget` tokens; the steps of an epoch follow from the lengths of its rows.

    The rows of a step are taken from the order of the epoch, and are placed so that the ranks get nearly equal work.
    A row longer than the budget makes a micro-batch of its own. Rows that cannot be used are left out.

    Args:
        mixture: the order of the rows.
        costs: of every row of the mixture.
        shape: accumulation, ranks and rank; its `per_device` is not used.
        budget: tokens of a micro-batch.
        padded: whether a micro-batch costs its longest row times its rows, as the padded layout does.
        group_by_length: bring rows of like length together, as padded rows want.

    Raises:
        DataError: no row can be used.
    """

    def __init__(
        self,
        mixture: Mixture,
        costs: RowCosts,
        shape: BatchShape,
        budget: int,
        *,
        padded: bool = False,
        group_by_length: bool = False,
    ) -> None:
        if not bool(costs.tokens.any()):
            raise DataError('not one row of the training data can be used; look at skipped_samples.jsonl.')
        self.mixture, self.shape, self.budget = mixture, shape, budget
        self._tokens, self._work = costs.tokens.tolist(), costs.work.tolist()
        self._padded, self._group = padded, group_by_length
        self._planned: tuple[int, list[list[list[int]]]] | None = None

    def steps_in(self, epoch: int) -> int:
        """Optimizer steps of that epoch."""
        return len(self.plan(epoch))

    def micro_batches(self, epoch: int, start_step: int = 0) -> Iterator[list[int]]:
        """Yields this rank's lists of indices, exactly `accumulation` for each optimizer step."""
        for step in self.plan(epoch)[start_step:]:
            yield from step[self.shape.rank * self.shape.accumulation : (self.shape.rank + 1) * self.shape.accumulation]

    def plan(self, epoch: int) -> list[list[list[int]]]:
        """Returns, for each step of that epoch, `world_size * accumulation` micro-batches, rank by rank."""
        if self._planned is None or self._planned[0] != epoch:
            self._planned = (epoch, list(self._steps(self._order(epoch))))
        return self._planned[1]

    def _order(self, epoch: int) -> list[int]:
        rows = [row for row in self.mixture.order(epoch).tolist() if self._tokens[row]]
        if not self._group:
            return rows
        mean = sum(self._tokens[row] for row in rows) / len(rows)
        slots = self.shape.world_size * self.shape.accumulation
        return grouped(rows, self._tokens, max(1, round(GROUPED_STEPS * slots * self.budget / mean)))

    def _steps(self, rows: Sequence[int]) -> Iterator[list[list[int]]]:
        slots = self.shape.world_size * self.shape.accumulation
        bins: list[list[int]] = [[] for _ in range(slots)]
        for row in rows:
            place = self._place(bins, row)
            if place is None:
                yield self._spread(bins)
                bins = [[] for _ in range(slots)]
                place = 0
            bins[place].append(row)
        if any(bins):
            yield self._spread(bins)

    def _place(self, bins: list[list[int]], row: int) -> int | None:
        """The emptiest micro-batch that has room for the row; an empty one has room for any."""
        fitting = [index for index, held in enumerate(bins) if not held or self._size([*held, row]) <= self.budget]
        return min(fitting, key=lambda index: self._size(bins[index]), default=None)

    def _size(self, rows: Sequence[int]) -> int:
        lengths = [self._tokens[row] for row in rows]
        return max(lengths, default=0) * len(lengths) if self._padded else sum(lengths)

    def _spread(self, bins: list[list[int]]) -> list[list[int]]:
        """The same rows with the work evened out: among micro-batches where the budget allows, then among ranks."""
        return self._by_rank(self._evened([row for held in bins for row in held], len(bins)) or bins)

    def _evened(self, rows: list[int], slots: int) -> list[list[int]] | None:
        # Longest processing time first: within 4/3 of the best possible largest load (Graham, 1969).
        bins: list[list[int]] = [[] for _ in range(slots)]
        loads = [0.0] * slots
        for row in sorted(rows, key=lambda row: (-self._work[row], row)):
            fitting = [
                index for index in range(slots) if not bins[index] or self._size([*bins[index], row]) <= self.budget
            ]
            if not fitting:
                return None
            place = min(fitting, key=loads.__getitem__)
            bins[place].append(row)
            loads[place] += self._work[row]
        return bins

    def _by_rank(self, bins: list[list[int]]) -> list[list[int]]:
        work = [sum(self._work[row] for row in held) for held in bins]
        ranks: list[list[int]] = [[] for _ in range(self.shape.world_size)]
        loads = [0.0] * len(ranks)
        for index in sorted(range(len(bins)), key=lambda index: (-work[index], index)):
            open_ranks = [rank for rank in range(len(ranks)) if len(ranks[rank]) < self.shape.accumulation]
            rank = min(open_ranks, key=lambda rank: (loads[rank], rank))
            ranks[rank].append(index)
            loads[rank] += work[index]
        return [bins[index] for held in ranks for index in held]


def grouped(rows: Sequence[int], lengths: Sequence[int], size: int) -> list[int]:
    """Sorts every `size` consecutive rows by length, longest first, and keeps the order of these groups."""
    groups = [rows[start : start + size] for start in range(0, len(rows), size)]
    return [row for group in groups for row in sorted(group, key=lambda row: (-lengths[row], row))]


def measured(tokens: Sequence[int], work: Sequence[float]) -> RowCosts:
    """The costs of all rows in order."""
    return RowCosts(torch.tensor(tokens, dtype=torch.long), torch.tensor(work, dtype=torch.float64))
