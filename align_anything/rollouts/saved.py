"""What came of an episode as plain values and tensors, which are read without running any code, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from types import NoneType
from typing import Any

import numpy as np
import torch
from PIL import Image

from align_anything.core.actions import Actions
from align_anything.core.types import Audio, CodedMedia, Embedding, Episode, Piece, Response, Skipped, Turn, Video

IS = '__is__'
PLAIN = frozenset({int, float, str, bool, NoneType, torch.Tensor})
RECORDS = {
    kind.__name__: kind
    for kind in (Episode, Turn, Piece, Response, Skipped, Actions, Audio, Video, CodedMedia, Embedding)
}
LEFT_OUT = object()


def plain(value: Any) -> Any:
    """Returns a value as dicts, lists, numbers, texts and tensors.

    What else an environment put into the `info` of a turn is left out.
    """
    kind = type(value)
    if kind in PLAIN:
        return value
    if kind in WRITERS:
        return WRITERS[kind](value)
    if kind in RECORDS.values():
        return {IS: kind.__name__, **{field.name: plain(getattr(value, field.name)) for field in fields(kind)}}
    return value.item() if issubclass(kind, np.generic) else LEFT_OUT


def restored(value: Any) -> Any:
    """Returns the value that `plain` made something of."""
    kind = type(value)
    if kind is list:
        return [restored(item) for item in value]
    if kind is not dict:
        return value
    items = {key: restored(item) for key, item in value.items() if key != IS}
    if IS not in value:
        return items
    name = value[IS]
    return RECORDS[name](**items) if name in RECORDS else READERS[name](items['of'])


def _listed(values: Any) -> list[Any]:
    return [item for item in map(plain, values) if item is not LEFT_OUT]


def _dict(value: Mapping[Any, Any]) -> dict[Any, Any]:
    items = {key: plain(item) for key, item in value.items()}
    return {key: item for key, item in items.items() if item is not LEFT_OUT}


WRITERS: dict[type, Callable[[Any], Any]] = {
    dict: _dict,
    list: _listed,
    tuple: lambda value: {IS: 'tuple', 'of': _listed(value)},
    Image.Image: lambda value: {IS: 'image', 'of': torch.from_numpy(np.array(value))},
    np.ndarray: lambda value: {IS: 'array', 'of': torch.from_numpy(np.ascontiguousarray(value))},
}
READERS: dict[str, Callable[[Any], Any]] = {
    'tuple': tuple,
    'image': lambda pixels: Image.fromarray(pixels.numpy()),
    'array': lambda tensor: tensor.numpy(),
}
