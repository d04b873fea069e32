"""What `align-anything add-media-tokens` is told of kinds of media on its command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from align_anything.core.errors import SettingsError
from align_anything.core.types import MEDIA_KINDS, MediaKind

T = TypeVar('T')


def grids_of(given: Sequence[str]) -> dict[MediaKind, tuple[int, ...]]:
    """Returns the grids in words such as `image=16x16`. Raises SettingsError for what is none."""
    return _by_kind('--size', given, lambda text: tuple(int(side) for side in text.split('x')), 'image=16x16')


def lengths_of(given: Sequence[str]) -> dict[MediaKind, int]:
    """Returns the lengths in words such as `audio=1500`. Raises SettingsError for what is none."""
    return _by_kind('--max_length', given, int, 'audio=1500')


def _by_kind(option: str, given: Sequence[str], read: Callable[[str], T], example: str) -> dict[MediaKind, T]:
    found = {}
    for word in given:
        kind, _, text = word.partition('=')
        try:
            value = read(text)
        except ValueError:
            value = None
        if kind not in MEDIA_KINDS or not value:
            raise SettingsError([f'command line: {option} {word} should look like {example}.'])
        found[kind] = value
    return found
