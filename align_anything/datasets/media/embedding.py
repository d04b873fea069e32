"""Media that an encoder outside the model has read already: one vector each."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy

from align_anything.core.errors import SampleError
from align_anything.core.types import Embedding, Media
from align_anything.datasets.media.sources import as_file, describe, embedding_of


def decode_embedding(media: Media) -> Embedding:
    """Returns the vector of a medium whose source is `{'embedding': …}`: numbers, or an `.npy` file of them.

    A file may hold it as a batch of one, `(1, size)`. Raises `SampleError` when it is no vector of finite numbers.
    """
    given = embedding_of(media.source)
    if isinstance(given, (str, bytes, bytearray)):
        given = as_file(replace(media, source=given))
        try:
            # A file with objects in it could run code.
            given = numpy.load(given if isinstance(given, str) else io.BytesIO(given), allow_pickle=False)
        except ValueError as error:
            raise SampleError(f'{describe(media)} is no .npy file of numbers: {error}.') from error
    values = numpy.asarray(given)
    values = values[0] if values.ndim == 2 and len(values) == 1 else values
    if values.ndim != 1 or not values.size or values.dtype.kind not in 'iuf':
        raise SampleError(f'{describe(media)} of {values.dtype} and shape {values.shape} is no vector of numbers.')
    if not numpy.isfinite(values).all():
        raise SampleError(f'{describe(media)} has numbers that are not finite.')
    return Embedding(values.astype(numpy.float32))
