"""Rows as templates get them: those of users as `datasets` gives them, and what became of what they give back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align_anything.core.types import MediaKind
from align_anything.datasets.features import Label, MediaPath, MediaRecord, RowView
from align_anything.datasets.formatters.base import BaseFormatter
from align_anything.datasets.media import make_media
from align_anything.datasets.media.audio import decode_audio
from align_anything.datasets.media.image import open_image
from align_anything.datasets.media.sources import Folders
from align_anything.datasets.turn_keys import MEDIA_KEYS, is_empty_record
from align_anything.datasets.unread import looks_like

OWN = 'align_anything.datasets.formatters.'


class TemplateRow(RowView):
    """A row for one template, which remembers the columns that were read.

    Templates of this package pass media on as they are stored. Those of users get what `datasets` gives: images as
    `PIL.Image.Image`, audio as `{'path', 'array', 'sampling_rate'}`, each decoded when its column is read, and classes
    as plain numbers, which are also written as such.
    """

    def __init__(self, row: dict[str, Any], formatter: BaseFormatter, folders: Mapping[MediaKind, Folders]) -> None:
        super().__init__(row, None if type(formatter).__module__.startswith(OWN) else self._decoded)
        self._folders = folders
        self._stored: list[tuple[Any, Any]] = []

    def stored(self, value: Any) -> Any:
        """Returns what a template gave back with decoded media that it left alone as they are stored.

        So they are decoded once, as the model asks, and found again by caches.
        """
        for decoded, stored in self._stored:
            if value is decoded:
                return stored
        if isinstance(value, dict):
            return {key: self.stored(item) for key, item in value.items()} if self._stored else value
        if isinstance(value, (list, tuple)):
            return [self.stored(item) for item in value] if self._stored else value
        return value

    def unread_values(self) -> dict[str, Any]:
        """Returns the columns that nobody read and that hold no media; a text may name a file."""
        others = {name: value for name, value in self.unread().items() if name not in (*MEDIA_KEYS, 'tools')}
        return {name: value for name, value in others.items() if type(value) is str or looks_like(value) is None}

    def _decoded(self, value: Any) -> Any:
        if isinstance(value, (MediaRecord, MediaPath)):
            if is_empty_record(value):
                return None
            decoded = self._decode(value)
            self._stored.append((decoded, value))
            return decoded
        if isinstance(value, Label):
            return int(value)
        if isinstance(value, dict):
            return {key: self._decoded(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._decoded(item) for item in value]
        return value

    def _decode(self, value: MediaRecord | MediaPath) -> Any:
        folder = self._folders.get(value.kind, '')
        if value.kind == 'image':
            return open_image(make_media('image', value, folder))
        path, rate = (value, None) if isinstance(value, MediaPath) else (value.get('path'), value.rate)
        audio = decode_audio(make_media('audio', value, folder, {'rate': rate}))
        return {'path': path, 'array': audio.samples, 'sampling_rate': audio.rate}
