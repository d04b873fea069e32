"""Rows whose prompt text is left empty now and then, so that a model learns to write media without a prompt too."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from align_anything.datasets.dataset import Emptied
from align_anything.datasets.mixture import StreamedRow
from align_anything.datasets.sampler import Sampler


class PromptDropout(Sampler):
    """The micro-batches of another sampler, some rows of them `Emptied`.

    Which ones hangs on seed, epoch and row alone: a resumed run and any number of ranks leave the same ones empty.
    """

    def __init__(self, sampler: Sampler, probability: float, seed: int) -> None:
        self.sampler, self.probability, self.seed, self.shape = sampler, probability, seed, sampler.shape

    def steps_in(self, epoch: int) -> int | None:
        """As the sampler does."""
        return self.sampler.steps_in(epoch)

    def cursor(self, epoch: int, step: int) -> Sequence[int] | None:
        """As the sampler does."""
        return self.sampler.cursor(epoch, step)

    def resume_at(self, epoch: int, step: int, cursor: Sequence[int]) -> None:
        """As the sampler does."""
        self.sampler.resume_at(epoch, step, cursor)

    def micro_batches(self, epoch: int, start_step: int = 0) -> Iterator[list[Any]]:
        """Yields those of the sampler."""
        for rows in self.sampler.micro_batches(epoch, start_step):
            yield [Emptied(row) if self._empties(epoch, row) else row for row in rows]

    def _empties(self, epoch: int, row: int | StreamedRow) -> bool:
        number = f'{row.source_index} {row.name}' if isinstance(row, StreamedRow) else row
        return random.Random(f'{self.seed} {epoch} {number}').random() < self.probability
