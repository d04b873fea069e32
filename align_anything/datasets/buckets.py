"""Buckets: media of about one size go into one micro-batch, so that nothing is padded and hardly anything cropped.

A bucket is the size that a medium is brought to: `(height, width)` of an image, `(frames, height, width)` of a video.
Rows whose media are brought to one size are batched together, the same size on every rank in each micro-batch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence

from align_anything.core.errors import DataError, SampleError, SettingsError
from align_anything.datasets.mixture import Mixture
from align_anything.datasets.sampler import BatchShape, Sampler

Bucket = tuple[int, ...]

BAR = 40
"""Columns of the longest bar of a histogram."""


def bucket_sizes(area: int, multiple: int, max_ratio: float = 2.0) -> list[Bucket]:
    """Returns sizes `(height, width)` of at most `area` pixels, from the tallest to the widest.

    Each has one side of every length, the other as long as the area allows: so none takes more memory than the square
    of that area. Sides are multiples of `multiple`, and neither is over `max_ratio` times the other.

    Raises SettingsError where there is none.
    """
    if multiple < 1 or area < multiple**2 or max_ratio < 1:
        raise SettingsError(
            [
                f'no bucket has {area} pixels at most, sides that are multiples of {multiple}, and a ratio from 1 to '
                f'{max_ratio}: raise the resolution or the ratio.'
            ]
        )
    pairs = []
    for short in range(multiple, math.isqrt(area) + 1, multiple):
        long = area // short // multiple * multiple
        if long <= max_ratio * short:
            pairs += [(long, short), (short, long)]
    # The square may leave no capacity for a side that is one multiple longer, and then has the ratio of none of these.
    side = math.isqrt(area) // multiple * multiple
    return sorted({*pairs, (side, side)}, key=lambda size: (size[1] / size[0], size))


def nearest_bucket(size: Bucket, buckets: Sequence[Bucket]) -> Bucket:
    """Returns the bucket in which the least is lost of a medium of `size`, `(height, width)` or with frames in front.

    Of a video it has the most frames that the video has, since none can be made up, then the nearest ratio of the sides
    (in the logarithm, so that tall and wide are alike); of equally near ones the larger.

    Raises:
        SampleError: there is no bucket with as few frames as the video has.
    """
    *frames, height, width = size
    if height < 1 or width < 1:
        raise SampleError(f'it is {width} x {height} pixels large, which is nothing to see')
    fitting = [bucket for bucket in buckets if not frames or bucket[0] <= frames[0]]
    if not fitting:
        raise SampleError(f'it has {frames[0]} frames, and the shortest bucket takes {min(buckets)[0]}')
    most = max(bucket[0] for bucket in fitting) if frames else 0
    ratio = math.log(width / height)

    def distance(bucket: Bucket) -> tuple[float, int]:
        return abs(math.log(bucket[-1] / bucket[-2]) - ratio), -bucket[-1] * bucket[-2]

    return min((bucket for bucket in fitting if not frames or bucket[0] == most), key=distance)


def frame_counts(most: int, multiple: int) -> list[int]:
    """Returns the numbers of frames, `most` at most, that an autoencoder compresses by `multiple`: 1, 1 + `multiple`, …

    `multiple` is 4 for Wan, HunyuanVideo and CogVideoX, and 8 for LTX. Raises SettingsError where there is none.
    """
    if most < 1 or multiple < 1:
        raise SettingsError([f'a video of at most {most} frames, one and multiples of {multiple} more, has none.'])
    return list(range(1, most + 1, multiple))


def clip_sizes(counts: Sequence[int], sizes: Sequence[Bucket]) -> list[Bucket]:
    """Returns the buckets `(frames, height, width)` of videos: each number of frames with each size."""
    return [(count, *size) for count in counts for size in sizes]


def histogram(buckets: Iterable[Hashable | None]) -> str:
    """Returns how many rows each bucket has, a line each with a bar, the fullest first; None are unusable rows."""
    counts = Counter(buckets)
    unusable = counts.pop(None, 0)
    total = counts.total()
    lines = [
        f'{named(bucket):>14} {count:>7} {count / total:>6.1%} {"#" * math.ceil(BAR * count / max(counts.values()))}'
        for bucket, count in sorted(counts.items(), key=lambda item: (-item[1], named(item[0])))
    ]
    return '\n'.join([*lines, *([f'{"unusable":>14} {unusable:>7}'] if unusable else [])])


def named(bucket: Hashable) -> str:
    """Returns words for a bucket: `width x height`, of a video with its frames."""
    if not isinstance(bucket, tuple) or len(bucket) < 2:
        return str(bucket)
    *frames, height, width = bucket
    return f'{width}x{height}{f"x{frames[0]}" if frames else ""}'


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
        return -(-len(self._plan(epoch)) // self.shape.accumulation)

    def micro_batches(self, epoch: int, start_step: int = 0) -> Iterator[list[int]]:
        """Yields this rank's lists of indices, exactly `accumulation` for each optimizer step."""
        plan, shape = self._plan(epoch), self.shape
        yield from (rows[shape.rank :: shape.world_size] for rows in plan[start_step * shape.accumulation :])
        # The last step has as many as the others.
        yield from ([] for _ in range(-len(plan) % shape.accumulation))

    def _plan(self, epoch: int) -> list[list[int]]:
        """The rows of all ranks in each micro-batch of that epoch."""
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
