"""Columns that no template reads although their values look like media."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import islice
from typing import Any

from align_anything.core.types import MEDIA_KINDS, MediaKind
from align_anything.datasets.local_files import MEDIA_SUFFIXES

NAMED = {
    kind: re.compile(rf'(?is)data:{kind}/.*|[^\n]{{1,1000}}\.({"|".join(suffixes)})([?#][^\s]*)?')
    for kind in MEDIA_KINDS
    if (suffixes := [suffix[1:] for suffix, known in MEDIA_SUFFIXES.items() if known == kind])
}
BEGINNINGS: tuple[tuple[MediaKind, re.Pattern[bytes]], ...] = (
    ('image', re.compile(rb'\x89PNG|\xff\xd8\xff|GIF8|BM|RIFF....WEBP|II\*\x00|MM\x00\*', re.DOTALL)),
    ('audio', re.compile(rb'RIFF....WAVE|fLaC|OggS|ID3|\xff[\xf2\xf3\xfb]', re.DOTALL)),
    ('video', re.compile(rb'....ftyp|\x1aE\xdf\xa3|RIFF....AVI ', re.DOTALL)),
)
"""How files begin."""
NESTED = 4
"""How deep media may lie in lists and records."""
LOOKED_AT = 16
"""Entries of a list or record that are looked at."""


def looks_like(value: Any, depth: int = NESTED) -> MediaKind | None:
    """Returns the kind of media that a value of a row looks like, None for none.

    Known by the suffix of a path, a data URI, the beginning of bytes, samples with their rate, and what else media of
    rows may be; of lists and records by what is in them.
    """
    if isinstance(value, str):
        return next((kind for kind, pattern in NAMED.items() if pattern.fullmatch(value.strip())), None)
    if isinstance(value, (bytes, bytearray)):
        return next((kind for kind, pattern in BEGINNINGS if pattern.match(value)), None)
    if isinstance(value, Mapping) and {'array', 'sampling_rate'} <= value.keys():
        return 'audio'
    if isinstance(value, (Mapping, list, tuple)) and depth:
        inner = value.values() if isinstance(value, Mapping) else value
        return next(filter(None, (looks_like(item, depth - 1) for item in islice(inner, LOOKED_AT))), None)
    # Without importing Pillow, which the rows of texts do without.
    return 'image' if any(base.__module__ == 'PIL.Image' for base in type(value).__mro__) else None
