"""Media brought to a size: covered, then cropped in the middle, so that nothing is stretched or left empty."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def fit_image(image: Any, height: int, width: int) -> Tensor:
    """Returns a PIL image as `(3, height, width)` float32 from -1 to 1."""
    fitted = covering(image, height, width)
    values = torch.frombuffer(bytearray(fitted.tobytes()), dtype=torch.uint8).view(height, width, 3)
    return values.permute(2, 0, 1).float() / 127.5 - 1


def covering(image: Any, height: int, width: int) -> Any:
    """Returns a PIL image as an RGB one of that size."""
    from PIL import Image, ImageOps

    # Converting copies a picture also where nothing changes.
    image = image if image.mode == 'RGB' else image.convert('RGB')
    return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
