"""What a run reads and writes."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from align_anything.core.types import MediaKind


@dataclass(frozen=True)
class Pair:
    """A modality pair such as `text_image_to_text`.

    Attributes:
        name: the folder of its trainers and settings.
        reads: media kinds that may stand in a conversation, text aside.
        needs_all: whether a model must read every one of them. Where it need not, it must read at least one, and
            rows with other kinds are left out.
    """

    name: str
    reads: frozenset[MediaKind] = frozenset()
    needs_all: bool = True

    def kinds_in(self, readable: Set[MediaKind]) -> tuple[MediaKind, ...]:
        """The kinds that both the pair and a model that reads `readable` take."""
        return tuple(sorted(self.reads & readable))

    def missing_from(self, readable: Set[MediaKind]) -> tuple[MediaKind, ...]:
        """The kinds for the lack of which a model that reads `readable` cannot serve the pair."""
        if not self.needs_all and self.reads & readable:
            return ()
        return tuple(sorted(self.reads - readable))
