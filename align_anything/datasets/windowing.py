"""Samplers that say which window of each episode is taken."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from align_anything.datasets.dataset import Windowed
from align_anything.datasets.mixture import StreamedRow
from align_anything.datasets.sampler import Sampler
from align_anything.datasets.windows import Windows


class _Around(Sampler):
    """The steps of another sampler."""

    def __init__(self, sampler: Sampler, windows: Windows) -> None:
        self.sampler, self.windows, self.shape = sampler, windows, sampler.shape

    def steps_in(self, epoch: int) -> int | None:
        """As the sampler does."""
        return self.sampler.steps_in(epoch)

    def cursor(self, epoch: int, step: int) -> Sequence[int] | None:
        """As the sampler does."""
        return self.sampler.cursor(epoch, step)

    def resume_at(self, epoch: int, step: int, cursor: Sequence[int]) -> None:
        """As the sampler does."""
        self.sampler.resume_at(epoch, step, cursor)


class RandomWindows(_Around):
    """The micro-batches of another sampler, each row of them `Windowed`.

    Which window hangs on seed, epoch and row alone: a resumed run and any number of ranks take the same ones.
    """

    def micro_batches(self, epoch: int, start_step: int = 0) -> Iterator[list[Any]]:
        """Yields those of the sampler."""
        for rows in self.sampler.micro_batches(epoch, start_step):
            yield [Windowed(row, self.windows.of(_told(row), epoch)) for row in rows]


class AllWindows(_Around):
    """The micro-batches of a sampler over all windows of all rows, as `Windowed` rows.

    Args:
        counts: windows of each row, in the order of the rows; the sampler's numbers count them through.
    """

    def __init__(self, sampler: Sampler, windows: Windows, counts: Sequence[int]) -> None:
        super().__init__(sampler, windows)
        self._ends = list(accumulate(counts))

    def micro_batches(self, epoch: int, start_step: int = 0) -> Iterator[list[Any]]:
        """Yields those of the sampler."""
        for numbers in self.sampler.micro_batches(epoch, start_step):
            yield [self._window(number) for number in numbers]

    def _window(self, number: int) -> Windowed:
        row = bisect_right(self._ends, number)
        first = number - (self._ends[row - 1] if row else 0)
        return Windowed(row, self.windows.starting_at(first))


def _told(row: int | StreamedRow) -> str:
    return f'{row.source_index} {row.name}' if isinstance(row, StreamedRow) else str(row)
