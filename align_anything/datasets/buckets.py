"""Rows whose media are brought to one size go into one micro-batch, so that nothing is padded."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

from align_anything.core.errors import DataError
from align_anything.datasets.mixture import Mixture
from align_anything.datasets.sampler import BatchShape, Sampler


class BucketSampler(Sampler):
    """Micro-batches of row indices that share a bucket, the same on all ranks in each micro-batch of a step.

    The rows of a bucket are batched as they come in the order of the epoch, and a micro-batch stands where one of its
    rows does. Every row is seen once: what is left of a bucket is a micro-batch with fewer rows, so that steps differ
    in their number of rows. Which rows a step holds is a function of (seed, epoch), the rows of a micro-batch over all
    ranks, and the micro-batches of a step; with one bucket it is that of `IndexSampler`.

    Args:
        mixture: the order.
        buckets: that of each row, None for rows that cannot be used, which are left out.
        shape: how a step is split.

    Raises:
        DataError: no row can be used.
    """

    def __init__(self, mixture: Mixture, buckets: Sequence[Hashable | None], shape: BatchShape) -> None:
        if all(bucket is None for bucket in buckets):
            raise DataError('not one row of the training data can be used; look at skipped_samples.jsonl.')
        self.mixture, self.shape = mixture, shape
        self._buckets = buckets
        self._planned: tuple[int, list[list[int]]] | None = None

    def steps_in(self, epoch: int) -> int:
        """Optimizer steps of that epoch."""
        return -(-len(self.plan(epoch)) // self.shape.accumulation)

    def micro_batches(self, epoch: int, start_step: int = 0) -> Iterator[list[int]]:
        """Yields this rank's lists of indices, exactly `accumulation` for each optimizer step."""
        plan, shape = self.plan(epoch), self.shape
        yield from (rows[shape.rank :: shape.world_size] for rows in plan[start_step * shape.accumulation :])
        # The last step has as many as the others.
        yield from ([] for _ in range(-len(plan) % shape.accumulation))

    def plan(self, epoch: int) -> list[list[int]]:
        """Returns the rows of all ranks in each micro-batch of that epoch."""
        if self._planned is None or self._planned[0] != epoch:
            size = self.shape.per_device * self.shape.world_size
            filling: dict[Hashable, list[tuple[int, int]]] = {}
            batches: list[list[tuple[int, int]]] = []
            for position, row in enumerate(self.mixture.order(epoch).tolist()):
                bucket = self._buckets[row]
                if bucket is None:
                    continue
                if len(filling.get(bucket, ())) in (0, size):
                    filling[bucket] = []
                    batches.append(filling[bucket])
                filling[bucket].append((row, position))
            # By its first row, a micro-batch of a rare bucket would come early; by its last, late.
            batches.sort(key=lambda batch: min(batch)[1])
            plan = [[row for row, _ in batch] for batch in batches]
            self._planned = (epoch, plan)
        return self._planned[1]
