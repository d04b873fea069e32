"""What a run reads and writes."""

from __future__ import annotations

from dataclasses import dataclass

from align_anything.core.types import MediaKind


@dataclass(frozen=True)
class Pair:
    """A modality pair such as `text_image_to_text`.

    Attributes:
        name: the folder of its trainers and settings.
        reads: media kinds that may stand in a conversation, text aside.
    """

    name: str
    reads: frozenset[MediaKind] = frozenset()
