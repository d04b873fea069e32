"""Decoded media that are kept for the next row that shows them."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import Any

from align_anything.core.types import Audio, Media, Video
from align_anything.datasets.media.sources import file_of, is_frame


class MediaCache:
    """The media used last, up to `limit` bytes of decoded data. It travels to other processes empty."""

    def __init__(self, limit: int) -> None:
        self.limit, self.size = limit, 0
        self._items: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    def __reduce__(self) -> Any:
        return MediaCache, (self.limit,)

    def get(self, key: Hashable) -> Any:
        """Returns what was kept under `key`, or None."""
        if key not in self._items:
            return None
        self._items.move_to_end(key)
        return self._items[key][0]

    def put(self, key: Hashable, value: Any) -> None:
        """Keeps a decoded medium and drops those unused for longest; one larger than the limit is not kept."""
        size = decoded_bytes(value)
        if key in self._items or size > self.limit:
            return
        self._items[key] = value, size
        self.size += size
        while self.size > self.limit:
            _, (_, dropped) = self._items.popitem(last=False)
            self.size -= dropped


def decoded_bytes(value: Any) -> int:
    """Returns the memory that a decoded medium takes up."""
    if isinstance(value, Audio):
        return value.samples.nbytes
    if isinstance(value, Video):
        return value.frames.nbytes + (decoded_bytes(value.audio) if value.audio else 0)
    return value.width * value.height * len(value.getbands())


def lasting_key(media: Media) -> Hashable:
    """Returns what identifies the medium and its options in any row, or None for objects in memory."""
    source = media.source
    if is_frame(source):
        return media.kind, (_version_of(file_of(source)), _identity(source)), _frozen(media.options)
    content = source.get('bytes') if isinstance(source, Mapping) else source
    if isinstance(content, (bytes, bytearray)):
        identity: Hashable = hashlib.blake2b(content).digest()
    elif isinstance(content, str) and os.path.isfile(content):
        identity = _version_of(content)
    elif isinstance(content, str) and not os.path.isdir(content):
        identity = hashlib.blake2b(content.encode(errors='surrogatepass')).digest()
    else:
        return None
    return media.kind, identity, _frozen(media.options)


def _version_of(path: str) -> Hashable:
    """What tells a file and the time of its last change; of one that is missing its path."""
    absolute = os.path.abspath(path)
    if not os.path.exists(path):
        return absolute
    status = os.stat(path)
    return absolute, status.st_mtime_ns, status.st_size


def passing_key(media: Media) -> Hashable:
    """Returns what identifies the medium and its options while its source is alive and files stay as they are."""
    return media.kind, _identity(media.source), _frozen(media.options)


def _identity(source: Any) -> Hashable:
    # A video may be a folder or a list of frames, whose path each conversation of a pair has made anew.
    if isinstance(source, (list, tuple)):
        return tuple(map(_identity, source))
    if isinstance(source, Mapping):
        return tuple((name, _identity(value)) for name, value in sorted(source.items()))
    # Bytes and codes by their content: where a pair is two whole conversations, a row holds them twice.
    return source if isinstance(source, (str, bytes, int, float)) else id(source)


def _frozen(options: Mapping[str, Any]) -> Hashable:
    return tuple(sorted((name, repr(value)) for name, value in options.items()))
