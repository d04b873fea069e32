"""Decoding images: upright, in RGB, on white."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from align_anything.core.errors import SampleError
from align_anything.core.types import Media
from align_anything.datasets.media.sources import as_file, content, describe

MAX_PIXELS = 2**26
"""Largest image decoded by default, 8192 x 8192: beyond it a file is broken or a decompression bomb."""
SCALE_16_BIT = 1 / 257
ORIENTATION = 0x0112
ON_THEIR_SIDE = (5, 6, 7, 8)
"""Orientations that exchange width and height."""


def decode_image(media: Media) -> Any:
    """Returns a `PIL.Image.Image` in RGB, upright.

    Options: `max_pixels`, the largest size that is decoded; `rotate`, degrees counter-clockwise, `flip`, `horizontal`
    or `vertical`, and `size`, `(height, width)`, done in this order; `min_image_pixels` and `max_image_pixels`, to
    which smaller and larger images are scaled.

    Raises `SampleError` when it is no image or too large.
    """
    return finished(_to_rgb(open_image(media), media), media.options)


def finished(image: Any, options: Mapping[str, Any]) -> Any:
    """Returns an upright image in RGB as the options of `decode_image` want it. Raises SampleError for unknown ones."""
    return _scaled(_turned(image, options), options)


def finished_size(height: int, width: int, options: Mapping[str, Any]) -> tuple[int, int]:
    """Returns `(height, width)` of what `finished` makes of an image of that size."""
    if quarters_of(options) % 2:
        height, width = width, height
    height, width = options.get('size') or (height, width)
    return scaled_size(width, height, options.get('min_image_pixels'), options.get('max_image_pixels'))[::-1]


def quarters_of(options: Mapping[str, Any]) -> int:
    """Returns how many quarter turns counter-clockwise the options want. Raises SampleError for what is none."""
    degrees = options.get('rotate') or 0
    if degrees not in range(-270, 361, 90):
        raise SampleError(f'rotate is {degrees!r}; pictures are turned by 90, 180 or 270 degrees.')
    return degrees // 90 % 4


def _turned(image: Any, options: Mapping[str, Any]) -> Any:
    from PIL import Image

    turns = {1: Image.Transpose.ROTATE_90, 2: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_270}
    flips = {'horizontal': Image.Transpose.FLIP_LEFT_RIGHT, 'vertical': Image.Transpose.FLIP_TOP_BOTTOM}
    quarters, flip, size = quarters_of(options), options.get('flip'), options.get('size')
    if quarters:
        image = image.transpose(turns[quarters])
    if flip:
        if flip not in flips:
            raise SampleError(f'flip is {flip!r}; pictures are flipped {" or ".join(flips)}.')
        image = image.transpose(flips[flip])
    if size and tuple(size) != (image.height, image.width):
        image = image.resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return image


def open_image(media: Media) -> Any:
    """Returns a `PIL.Image.Image` in the mode that the image has, upright. Raises as `decode_image` does."""
    from PIL import ImageOps

    image = _as_stored(content(media), media)
    # Transposing copies the image even where nothing is to be turned.
    return image if image.getexif().get(ORIENTATION, 1) == 1 else ImageOps.exif_transpose(image)


def image_size(media: Media) -> tuple[int, int]:
    """Returns `(height, width)` of what `decode_image` gives, for which it reads the header of the file alone.

    The orientation of a PNG counts where it stands before the pixels. Raises as `decode_image` does, as far as the
    header tells.
    """
    from PIL import Image

    source = as_file(media)
    with Path(source).open('rb') if isinstance(source, str) else nullcontext(source) as opened:
        image = _as_stored(opened, media)
        # That of the class of PNGs would read all pixels, since the orientation may stand behind them.
        is_turned = Image.Image.getexif(image).get(ORIENTATION, 1) in ON_THEIR_SIDE
    width, height = image.size[::-1] if is_turned else image.size
    return finished_size(height, width, media.options)


def _as_stored(source: Any, media: Media) -> Any:
    """Returns the image of bytes, an open file, an array or an image, not turned and where it can be not decoded."""
    import numpy
    from PIL import Image

    limit = media.options.get('max_pixels') or MAX_PIXELS
    if isinstance(source, (list, numpy.ndarray)):
        source = _from_array(numpy.asarray(source), media)
    if isinstance(source, (bytes, bytearray, io.BufferedReader)):
        try:
            source = Image.open(io.BytesIO(source) if isinstance(source, (bytes, bytearray)) else source)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise SampleError(f'{describe(media)} is too large: {error}') from error
        except Image.UnidentifiedImageError as error:
            raise SampleError(f'{describe(media)} is not an image.') from error
    if not isinstance(source, Image.Image):
        raise SampleError(f'{describe(media)} is nothing that an image can be made from.')
    width, height = source.size
    if width * height > limit:
        raise SampleError(f'{describe(media)} is too large: {width} x {height} is over {limit} pixels.')
    if width * height == 0:
        raise SampleError(f'{describe(media)} has no pixels: {width} x {height}.')
    return source


def _scaled(image: Any, options: Mapping[str, Any]) -> Any:
    from PIL import Image

    size = scaled_size(*image.size, options.get('min_image_pixels'), options.get('max_image_pixels'))
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)


def scaled_size(width: int, height: int, fewest: int | None, most: int | None) -> tuple[int, int]:
    """Returns the size with the same proportions that has at least `fewest` and at most `most` pixels, to rounding."""
    pixels = width * height
    wanted = max(fewest or 0, min(pixels, most or pixels))
    if wanted == pixels:
        return width, height
    factor, rounded = math.sqrt(wanted / pixels), math.ceil if wanted > pixels else math.floor
    return max(1, rounded(width * factor)), max(1, rounded(height * factor))


def _to_rgb(image: Any, media: Media) -> Any:
    from PIL import Image

    if image.mode.startswith('I'):
        # Pillow clips 16 bit values to 255 instead of scaling them.
        image = image.convert('I').point(lambda value: value * SCALE_16_BIT).convert('L')
    if image.mode == 'F':
        raise SampleError(f'{describe(media)} has float pixels, whose range nobody knows: save it with 8 or 16 bits.')
    if 'A' in image.getbands() or 'a' in image.getbands() or 'transparency' in image.info:
        image = image.convert('RGBA')
        white = Image.new('RGBA', image.size, 'white')
        return Image.alpha_composite(white, image).convert('RGB')
    # convert() returns a copy also where nothing changes, so the caller's image stays untouched and loaded.
    return image.convert('RGB')


def _from_array(array: Any, media: Media) -> Any:
    """Returns an image of an array `(height, width[, channels])` or `(channels, height, width)`."""
    from PIL import Image

    if array.ndim == 3 and array.shape[-1] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (3, 4)) or not array.size:
        raise SampleError(f'{describe(media)} of shape {array.shape} is no image.')
    return Image.fromarray(to_bytes_per_channel(array, media))


def to_bytes_per_channel(array: Any, media: Media) -> Any:
    """Returns truth values, floats from 0 to 1, or integers as uint8 of the same shape.

    Raises `SampleError` when the values lie in no known range.
    """
    import numpy

    if array.dtype == numpy.uint8 or not array.size:
        return array.astype(numpy.uint8)
    if array.dtype.kind == 'b':
        array = array.astype(numpy.uint8) * 255
    low, high = array.min(), array.max()
    if array.dtype.kind == 'f':
        if not (low >= 0 and high <= 1):
            raise SampleError(f'{describe(media)} has float values from {low} to {high}; they should lie in 0 to 1.')
        array = (array * 255).round()
    elif array.dtype == numpy.uint16:
        array = (array * SCALE_16_BIT).round()
    elif array.dtype.kind not in 'iu' or low < 0 or high > 255:
        raise SampleError(f'{describe(media)} has {array.dtype} values from {low} to {high}; they should be 0 to 255.')
    return array.astype(numpy.uint8)
