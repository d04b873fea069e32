"""Splits the order of an epoch into optimizer steps, micro-batches and ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from align_anything.datasets.mixture import Mixture, StreamedRow, StreamMixture

T = TypeVar('T')


@dataclass(frozen=True)
class BatchShape:
    """How an optimizer step is split. Which rows it holds depends on `global_size` alone, never on the split."""

    per_device: int
    accumulation: int = 1
    world_size: int = 1
    rank: int = 0

    @property
    def global_size(self) -> int:
        """Rows of one optimizer step over all ranks and micro-batches."""
        return self.per_device * self.accumulation * self.world_size

    def share(self, step: Sequence[T]) -> list[list[T]]:
        """Returns this rank's micro-batches of the rows of one step: exactly `accumulation` lists, some maybe empty.

        Micro-batches take consecutive rows, ranks every `world_size`-th one of those, so that in the ragged last
        step no rank has over one row more than another.
        """
        size = self.per_device * self.world_size
        return [
            list(step[start + self.rank : min(start + size, len(step)) : self.world_size])
            for start in range(0, self.accumulation * size, size)
        ]


class Sampler:
    """What the loader asks: this rank's micro-batches from (epoch, step) on, `accumulation` lists for each step."""

    shape: BatchShape

    def micro_batches(self, epoch: int, start_step: int = 0) -> Iterator[list[Any]]:
        """Yields them."""
        raise NotImplementedError

    def steps_in(self, epoch: int) -> int | None:
        """Optimizer steps in that epoch; None where only reading the data tells."""
        return None

    def cursor(self, epoch: int, step: int) -> Sequence[int] | None:
        """What a later run needs beside (epoch, step) in order to resume there without delay, if anything."""
        return None

    def resume_at(self, epoch: int, step: int, cursor: Sequence[int]) -> None:
        """Is told the `cursor` of a step before `micro_batches` is asked for it; without it, it would find it anew."""


class IndexSampler(Sampler):
    """Micro-batches of row indices. The last step of an epoch is kept however few rows are left for it."""

    def __init__(self, mixture: Mixture, shape: BatchShape) -> None:
        self.mixture, self.shape = mixture, shape

    def steps_in(self, epoch: int) -> int:
        """Optimizer steps in that epoch."""
        return -(-len(self.mixture) // self.shape.global_size)

    def micro_batches(self, epoch: int, start_step: int = 0) -> Iterator[list[int]]:
        """Yields this rank's lists of indices, exactly `accumulation` for each optimizer step."""
        order, size = self.mixture.order(epoch), self.shape.global_size
        for start in range(start_step * size, len(order), size):
            yield from self.shape.share(order[start : start + size].tolist())


class StreamSampler(Sampler):
    """Micro-batches of streamed rows. Every rank reads the whole stream and keeps its share: all agree on its end."""

    def __init__(self, mixture: StreamMixture, shape: BatchShape) -> None:
        self.mixture, self.shape = mixture, shape

    def micro_batches(self, epoch: int, start_step: int = 0) -> Iterator[list[StreamedRow]]:
        """Yields this rank's lists of rows, exactly `accumulation` for each optimizer step."""
        size = self.shape.global_size
        rows = islice(self.mixture.rows(epoch), start_step * size, None)
        while step := list(islice(rows, size)):
            yield from self.shape.share(step)


class ChunkSampler(Sampler):
    """Chunks of consecutive rows, which ranks take in turn: what a chunk holds does not depend on how many ranks are.

    Args:
        rows: how many there are.
        size: rows of a chunk.
        world_size, rank: of the ranks.
        start: the first chunk.
    """

    def __init__(self, rows: int, size: int, world_size: int, rank: int, start: int = 0) -> None:
        self.shape = BatchShape(size, 1, world_size, rank)
        self.rows, self.start = rows, start
        self.chunks = -(-rows // size)

    def steps_in(self, epoch: int) -> int:
        """Rounds in which each rank has a chunk, or none is left for it."""
        return -(-max(0, self.chunks - self.start) // self.shape.world_size)

    def micro_batches(self, epoch: int, start_step: int = 0) -> Iterator[list[int]]:
        """Yields this rank's chunk of each round, as row indices; an empty one behind the last."""
        size = self.shape.per_device
        for step in range(start_step, self.steps_in(epoch)):
            first = self.chunk(step) * size
            yield list(range(first, min(first + size, self.rows)))

    def chunk(self, step: int) -> int:
        """The number of this rank's chunk in a round."""
        return self.start + step * self.shape.world_size + self.shape.rank
