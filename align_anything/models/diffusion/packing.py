"""Latents as tokens of 2 × 2 patches, as FLUX and what came after it take them."""

from __future__ import annotations

from torch import Tensor


def pack(latents: Tensor) -> Tensor:
    """Returns `(batch, channels, height, width)` as `(batch, height / 2 * width / 2, 4 * channels)`."""
    batch, channels, height, width = latents.shape
    patches = latents.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(batch, height * width // 4, channels * 4)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Returns tokens of patches as latents `(batch, channels, height, width)`."""
    batch, _, size = tokens.shape
    patches = tokens.reshape(batch, height // 2, width // 2, size // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(batch, size // 4, height, width)


def even_sigmas(steps: int) -> list[float]:
    """Returns the noise levels that such pipelines have shifted: evenly from 1 to 1 / steps."""
    import numpy

    return numpy.linspace(1.0, 1 / steps, steps).tolist()
