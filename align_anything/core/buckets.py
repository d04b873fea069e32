"""Buckets: the sizes that media of about one area are brought to, so that hardly anything is cropped or padded.

A bucket is `(height, width)` of an image, `(frames, height, width)` of a video.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from functools import cache

from align_anything.core.errors import SampleError, SettingsError

Bucket = tuple[int, ...]

STEPS = 16
"""Steps of a side's length from bucket to bucket, of the side of the square: few buckets, which fill soon."""
BAR = 40
"""Columns of the longest bar of a histogram."""


@cache
def bucket_sizes(area: int, multiple: int, max_ratio: float = 2.0) -> tuple[Bucket, ...]:
    """Returns sizes `(height, width)` of at most `area` pixels, from the tallest to the widest.

    The shorter side grows by about a sixteenth of the square's, and the other is as long as the area allows: so none
    takes more memory than that square. Sides are multiples of `multiple`, and neither is over `max_ratio` times the
    other. Those of 1024 × 1024 pixels are the sizes of SDXL.

    Raises SettingsError where there is none.
    """
    if multiple < 1 or area < multiple**2 or max_ratio < 1:
        raise SettingsError(
            [
                f'no bucket has {area} pixels at most, sides that are multiples of {multiple}, and a ratio from 1 to '
                f'{max_ratio}: raise the resolution or the ratio.'
            ]
        )
    step = multiple * max(1, round(math.isqrt(area) / STEPS / multiple))
    pairs = []
    for short in range(step, math.isqrt(area) + 1, step):
        long = area // short // step * step
        if long <= max_ratio * short:
            pairs += [(long, short), (short, long)]
    # A square is what most pictures want, and its side may be no multiple of the step.
    side = math.isqrt(area) // multiple * multiple
    return tuple(sorted({*pairs, (side, side)}, key=lambda size: (size[1] / size[0], size)))


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
