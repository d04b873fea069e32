"""Media brought to a size: covered, then cropped in the middle, so that nothing is stretched or left empty."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

MOST_UNEQUAL = 2.0
"""The longest side over the shortest, of a bucket."""
STEPS = 16
"""Steps of a side's length from bucket to bucket, of the side of a square."""


def fit_image(image: Any, height: int, width: int) -> Tensor:
    """Returns an RGB PIL image as `(3, height, width)` float32 from -1 to 1."""
    from PIL import Image, ImageOps

    fitted = ImageOps.fit(image.convert('RGB'), (width, height), Image.Resampling.LANCZOS)
    values = torch.frombuffer(bytearray(fitted.tobytes()), dtype=torch.uint8).view(height, width, 3)
    return values.permute(2, 0, 1).float() / 127.5 - 1


@cache
def buckets(area: int, multiple: int) -> tuple[tuple[int, int], ...]:
    """Returns the sizes `(height, width)` of at most `area` pixels whose sides are multiples of `multiple`.

    For each height the widest that fits; the sides differ at most by a factor of 2.
    """
    step = multiple * max(1, round(math.sqrt(area) / STEPS / multiple))
    found = []
    for height in range(step, int(math.sqrt(area * MOST_UNEQUAL)) + 1, step):
        width = area // height // step * step
        if width and max(height, width) <= MOST_UNEQUAL * min(height, width):
            found.append((height, width))
    return tuple(found)


def nearest_bucket(height: int, width: int, area: int, multiple: int) -> tuple[int, int]:
    """Returns the bucket whose aspect ratio is nearest to that of a picture, of several the largest."""
    wanted = math.log(height / width)
    return min(buckets(area, multiple), key=lambda size: (abs(math.log(size[0] / size[1]) - wanted), -math.prod(size)))
