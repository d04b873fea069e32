"""Media that a row brings as the codes of a codec, already made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy
import torch

from align_anything.core.errors import SampleError
from align_anything.core.types import CodedMedia, Media
from align_anything.datasets.media.sources import describe

GRIDS = {'image': 'height, width', 'audio': 'frames', 'video': 'frames, height, width'}
"""The dimensions of the codes of each kind, behind that of the code books."""
KEYS = ('codes', 'size', 'codec')


def brings_codes(source: Any) -> bool:
    """Tells whether the source of a medium is the record of its codes."""
    return isinstance(source, Mapping) and source.get('codes') is not None


def decode_codes(media: Media) -> CodedMedia:
    """Returns the codes of a medium whose source is `{'codes': nested list or array}`.

    The codes are whole numbers from 0, `(books, height, width)` of an image, `(books, frames)` of audio, `(books,
    frames, height, width)` of a video; without the first dimension where there is one book. In one row with `size`
    beside them, the grid such as `[24, 24]`, the books of each position stand side by side. `codec` is the fingerprint
    of the codec that made them, where it is known.

    Raises SampleError when they are no such numbers, or have another shape.
    """
    source = media.source
    unread = [str(key) for key, value in source.items() if value is not None and key not in KEYS]
    if unread:
        raise SampleError(f'{describe(media)} has {", ".join(unread)} beside its codes. Keys are: {", ".join(KEYS)}.')
    codec = source.get('codec') or ''
    if not isinstance(codec, str):
        raise SampleError(f'{describe(media)} has {codec!r} as the fingerprint of its codec, which should be a text.')
    codes = _numbers(source['codes'], media)
    dimensions = GRIDS[media.kind].count(',') + 1
    if source.get('size') is not None:
        codes = _in_grid(codes, source['size'], dimensions, media)
    if codes.ndim == dimensions:
        codes = codes[None]
    if codes.ndim != dimensions + 1:
        raise SampleError(
            f'{describe(media)} has codes of shape {codes.shape}. They should be (books, {GRIDS[media.kind]}), '
            f'({GRIDS[media.kind]}) where there is one book, or in one row with their grid under size.'
        )
    return CodedMedia(media.kind, torch.from_numpy(codes), codec)


def _numbers(values: Any, media: Media) -> numpy.ndarray:
    try:
        codes = numpy.asarray(values)
    except ValueError as error:
        raise SampleError(f'{describe(media)} has rows of codes that differ in length.') from error
    if not codes.size:
        raise SampleError(f'{describe(media)} has no codes.')
    if codes.dtype.kind not in 'iu':
        raise SampleError(f'{describe(media)} has codes that are no whole numbers ({codes.dtype}).')
    if codes.min() < 0:
        raise SampleError(f'{describe(media)} has the code {codes.min()}; codes count from 0.')
    return numpy.ascontiguousarray(codes, dtype=numpy.int64)


def _in_grid(codes: numpy.ndarray, size: Any, dimensions: int, media: Media) -> numpy.ndarray:
    """Returns codes in one row, the books of a position side by side, as `(books, *size)`."""
    whole = isinstance(size, Sequence) and not isinstance(size, str)
    if not whole or len(size) != dimensions or not all(type(side) is int and side > 0 for side in size):
        raise SampleError(f'{describe(media)} has the size {size!r}; it should be [{GRIDS[media.kind]}].')
    positions = math.prod(size)
    if codes.ndim != 1 or codes.size % positions:
        raise SampleError(
            f'{describe(media)} has codes of shape {codes.shape}, which do not fill a grid of {list(size)} in one row.'
        )
    return numpy.ascontiguousarray(codes.reshape(positions, -1).T).reshape(-1, *size)
