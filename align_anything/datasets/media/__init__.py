"""Media: where they come from, and decoding them in a worker, once each."""

from __future__ import annotations

from align_anything.datasets.media.cache import MediaCache
from align_anything.datasets.media.decoding import decode, decode_conversations, size_of
from align_anything.datasets.media.image import MAX_PIXELS
from align_anything.datasets.media.known import KnownMedia
from align_anything.datasets.media.sources import describe, make_media

__all__ = [
    'MAX_PIXELS',
    'KnownMedia',
    'MediaCache',
    'decode',
    'decode_conversations',
    'describe',
    'make_media',
    'size_of',
]
