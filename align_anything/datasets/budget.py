"""Micro-batches filled to a number of tokens instead of a number of rows, with equal work on every rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from align_anything.core.errors import DataError
from align_anything.core.types import Cost
from align_anything.datasets.filling import Filling, Sized
from align_anything.datasets.mixture import Mixture, StreamedRow, StreamMixture
from align_anything.datasets.sampler import Sampler

RowCosts = Sequence[Cost | None]
"""What each row of a dataset takes, measured once by encoding it; None for a row that cannot be used."""


class BudgetSampler(Sampler):
    """Micro-batches of row indices; the steps of an epoch follow from the costs of its rows.

    The rows of a step are taken from the order of the epoch. Rows that cannot be used are left out.

    Raises:
        DataError: no row can be used.
    """

    def __init__(self, mixture: Mixture, costs: RowCosts, filling: Filling) -> None:
        if not any(costs):
            raise DataError('not one row of the training data can be used; look at skipped_samples.jsonl.')
        self.mixture, self.filling, self.shape = mixture, filling, filling.shape
        self._costs = costs
        self._planned: tuple[int, list[list[list[Sized]]]] | None = None

    def steps_in(self, epoch: int) -> int:
        """Optimizer steps of that epoch."""
        return len(self.plan(epoch))

    def micro_batches(self, epoch: int, start_step: int = 0) -> Iterator[list[int]]:
        """Yields this rank's lists of indices, exactly `accumulation` for each optimizer step."""
        for step in self.plan(epoch)[start_step:]:
            yield from self.filling.share(step)

    def plan(self, epoch: int) -> list[list[list[Sized]]]:
        """Returns, for each step of that epoch, `world_size * accumulation` micro-batches, rank by rank."""
        if self._planned is None or self._planned[0] != epoch:
            rows = (
                Sized(row, cost) for row in self.mixture.order(epoch).tolist() if (cost := self._costs[row]) is not None
            )
            ordered = (item for group in self.filling.groups(rows) for item in group)
            self._planned = (epoch, list(self.filling.steps(ordered)))
        return self._planned[1]


Measure = Callable[[Iterator[StreamedRow]], Iterator[Sized]]


class StreamBudgetSampler(Sampler):
    """The same for streams: each rank measures its share of the rows ahead, and all learn what they take.

    Every rank reads the whole stream and plans the optimizer step, so all agree on steps and number. All must
    ask for the same ones, because `measure` communicates. Rows that cannot be used stay in, and are reported where
    they would have been trained.

    Args:
        measure: rows in, the same rows with what they take out, in their order.
    """

    def __init__(self, mixture: StreamMixture, measure: Measure, filling: Filling) -> None:
        self.mixture, self.filling, self.shape = mixture, filling, filling.shape
        self._measure = measure
        self._cursors: dict[tuple[int, int], Sequence[int]] = {}

    def cursor(self, epoch: int, step: int) -> Sequence[int] | None:
        """Where in the stream the step begins: the first row of a group, and how many rows of the group went before.

        Known once the step before has been handed out; what is before it is forgotten.
        """
        self._cursors = {key: cursor for key, cursor in self._cursors.items() if key >= (epoch, step)}
        return self._cursors.get((epoch, step))

    def resume_at(self, epoch: int, step: int, cursor: Sequence[int]) -> None:
        """Makes known where a step begins, so that nothing before it has to be measured again."""
        self._cursors[epoch, step] = cursor

    def micro_batches(self, epoch: int, start_step: int = 0) -> Iterator[list[StreamedRow]]:
        """Yields this rank's lists of rows, exactly `accumulation` for each optimizer step."""
        known = self._cursors.get((epoch, start_step))
        first, (group, used) = (0, (0, 0)) if known is None else (start_step, known)
        for number, step in enumerate(self.filling.steps(self._rows(epoch, group, used)), first):
            self._cursors[epoch, number + 1] = max((item.group, item.used) for micro in step for item in micro)
            if number >= start_step:
                yield from self.filling.share(step)

    def _rows(self, epoch: int, start: int, used: int) -> Iterator[Sized]:
        measured = self._measure(islice(self.mixture.rows(epoch), start, None))
        for group in self.filling.groups(measured):
            begin = min(item.row.number for item in group)
            for count, item in enumerate(group, 1):
                if count > used:
                    yield item._replace(group=begin, used=count)
            used = 0
