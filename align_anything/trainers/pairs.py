"""What a run reads and writes, and the settings that follow from it: the table of modality pairs."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any

from align_anything.core.errors import SettingsError
from align_anything.core.registry import nearest
from align_anything.core.types import MediaKind


@dataclass(frozen=True)
class Pair:
    """A modality pair such as `text_image_to_text`.

    Attributes:
        name: the folder of its trainers and settings.
        reads: media kinds that may stand in a conversation, text aside.
        writes: media kinds that an answer to learn may hold, text aside.
        writes_text: whether an answer may hold text too; else it is one medium and nothing else.
        needs_all: whether a model must read every one of `reads` and write every one of `writes`. Where it need not, it
            must read and write at least one of them, and rows with other kinds are left out.
        defaults: settings of every training on the pair, by key; between the algorithm's YAML file and the pair's.
    """

    name: str
    reads: frozenset[MediaKind] = frozenset()
    writes: frozenset[MediaKind] = frozenset()
    writes_text: bool = True
    needs_all: bool = True
    defaults: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def kinds_in(self, readable: Set[MediaKind]) -> tuple[MediaKind, ...]:
        """The kinds that both the pair and a model that reads `readable` take."""
        return tuple(sorted(self.reads & readable))

    def missing_from(self, readable: Set[MediaKind]) -> tuple[MediaKind, ...]:
        """The kinds for the lack of which a model that reads `readable` cannot serve the pair."""
        return self._missing(self.reads, readable)

    def unwritten_by(self, writable: Set[MediaKind]) -> tuple[MediaKind, ...]:
        """The kinds for the lack of which a model that writes `writable` cannot serve the pair."""
        return self._missing(self.writes, writable)

    @property
    def judged(self) -> Pair:
        """The pair as those see it who read its answers."""
        return replace(self, reads=self.reads | self.writes, writes=frozenset())

    def _missing(self, wanted: Set[MediaKind], able: Set[MediaKind]) -> tuple[MediaKind, ...]:
        return () if not self.needs_all and wanted & able else tuple(sorted(wanted - able))


PAIRS: Mapping[str, Pair] = {
    pair.name: pair
    for pair in (
        Pair('text_to_text'),
        Pair('text_image_to_text', reads=frozenset({'image'}), defaults={'freeze_vision_tower': True}),
        Pair('text_video_to_text', reads=frozenset({'video'}), defaults={'freeze_vision_tower': True}),
        Pair('text_audio_to_text', reads=frozenset({'audio'}), defaults={'freeze_audio_tower': True}),
        Pair(
            'any_to_text',
            reads=frozenset({'image', 'video', 'audio'}),
            needs_all=False,
            defaults={'freeze_vision_tower': True, 'freeze_audio_tower': True},
        ),
        Pair('text_to_image', writes=frozenset({'image'}), writes_text=False),
        Pair('text_to_audio', writes=frozenset({'audio'}), writes_text=False),
        Pair('text_to_video', writes=frozenset({'video'}), writes_text=False),
        Pair('text_image_to_image', reads=frozenset({'image'}), writes=frozenset({'image'}), writes_text=False),
        Pair('text_image_to_text_image', reads=frozenset({'image'}), writes=frozenset({'image'})),
        Pair(
            'text_video_to_action',
            reads=frozenset({'image', 'video'}),
            writes=frozenset({'action'}),
            writes_text=False,
            needs_all=False,
            defaults={'freeze_vision_tower': True},
        ),
        Pair(
            'any_to_any',
            reads=frozenset({'image', 'video', 'audio'}),
            writes=frozenset({'image', 'video', 'audio'}),
            needs_all=False,
        ),
    )
}


def find_pair(name: str) -> Pair:
    """Returns the pair called `name`. Raises SettingsError, with the nearest name, when there is none."""
    if name not in PAIRS:
        known = sorted(PAIRS)
        raise SettingsError(
            [f"there is no modality pair '{name}'.{nearest(name, known)} There are: {', '.join(known)}."]
        )
    return PAIRS[name]
