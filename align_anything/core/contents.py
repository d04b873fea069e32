"""What tells decoded media apart, and what stands for a medium whose content is known without decoding it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from align_anything.core.store import identity
from align_anything.core.types import Audio, Video


@dataclass(frozen=True, eq=False)
class Known:
    """Stands for a decoded medium where nobody looks at its pixels, frames or samples.

    Attributes:
        content: what `content_of` tells of it, JSON.
        size: its `native_size`.
    """

    content: Any
    size: tuple[int, ...]


def content_of(medium: Any) -> Any:
    """Returns what `identity` tells a decoded medium from others by."""
    if type(medium) is Known:
        return medium.content
    if type(medium) is Audio:
        return [medium.rate, identity(medium.samples)]
    if type(medium) is Video:
        return [medium.fps, identity(medium.timestamps), identity(medium.frames)]
    return [medium.mode, list(medium.size), identity(medium.tobytes())]


def native_size(medium: Any) -> tuple[int, ...]:
    """Returns the size that a decoded medium has.

    `(height, width)` of an image, `(frames, height, width)` of a video, `(samples,)` of audio.
    """
    if type(medium) is Known:
        return medium.size
    if type(medium) is Audio:
        return tuple(medium.samples.shape)
    if type(medium) is Video:
        return tuple(medium.frames.shape[:3])
    return medium.height, medium.width
