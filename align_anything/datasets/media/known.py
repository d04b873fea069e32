"""Media that are known from their files: what they were once decoded to says what to look up, so nobody decodes them.

A file is told by its bytes, wherever it lies and whenever it was written. A store holds what tells its decoded content
from others, and its size; what was made of the content is found by that.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from align_anything.core.contents import Known, content_of, native_size
from align_anything.core.errors import UnidentifiedError
from align_anything.core.store import TensorStore
from align_anything.core.types import MEDIA_KINDS, Conversation, Media, MediaKind
from align_anything.datasets.code import code_digest
from align_anything.datasets.media.codes import brings_codes
from align_anything.datasets.media.sources import embedding_of

DECODERS = ('av', 'numpy', 'pillow', 'soundfile', 'soxr')
"""Libraries another version of which may decode otherwise."""
JSON = 'json'
NOTED = 'noted'
"""Where the `meta` of an Example holds what was noted of its row."""


def known_store(folder: str | Path, setting: str) -> TensorStore:
    """Opens what is known of media in a folder. Raises SettingsError when it cannot be written to."""
    return TensorStore(folder, 'known', code_digest(DECODERS, ('datasets/media',)), setting)


@dataclass(frozen=True)
class KnownMedia:
    """What is known of the media of a dataset.

    Attributes:
        store: where it is, see `known_store`.
        unread: whether nobody looks at the content of media of a kind in the turns of a role.
        notes: whether what is not known yet is noted when it is decoded.
    """

    store: TensorStore
    unread: Callable[[str, MediaKind], bool]
    notes: bool = False

    def noting(self) -> KnownMedia:
        """Returns the same, which notes what it does not know."""
        return replace(self, notes=True)

    def lookup(self, conversations: Sequence[Conversation]) -> Lookup:
        """Returns what looks up the media of a row, of those kinds that nobody looks at anywhere in it."""
        messages = [message for conversation in conversations for message in conversation]
        parts = {(message['role'], part['type']) for message in messages for part in message['content']}
        read = {kind for role, kind in parts if kind in MEDIA_KINDS and not self.unread(role, kind)}
        return Lookup(self, set(MEDIA_KINDS) - read)


@dataclass
class Lookup:
    """Looks up the media of one row.

    Attributes:
        media: what is known.
        kinds: those that are looked up.
        found: whether one was.
        noted: what was not known and was decoded, entries of the store by their key.
    """

    media: KnownMedia
    kinds: set[MediaKind]
    found: bool = False
    noted: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def __call__(self, media: Media, decode: Callable[[], Any]) -> Any:
        """Returns what stands for a medium, or decodes it."""
        key = self._key(media) if media.kind in self.kinds else None
        if key is None:
            return decode()
        entry = self.media.store.get(key)
        if entry is not None:
            self.found = True
            content, size = json.loads(entry.tensors[JSON].numpy().tobytes())
            return Known(content, tuple(size))
        value = decode()
        if self.media.notes:
            told = json.dumps([content_of(value), native_size(value)]).encode()
            self.noted[key] = {JSON: torch.frombuffer(bytearray(told), dtype=torch.uint8)}
        return value

    def _key(self, media: Media) -> str | None:
        source = source_of(media)
        try:
            return None if source is None else self.media.store.key(media.kind, source, media.options)
        except UnidentifiedError:
            return None


def source_of(media: Media) -> Any:
    """Returns what tells the bytes that a medium is decoded from.

    None where it is not decoded from bytes at hand, or is decoded to several media.
    """
    source, options = media.source, media.options
    split = options.get('long_audio') == 'split' and options.get('max_seconds') is not None and media.kind == 'audio'
    if split or brings_codes(source) or embedding_of(source) is not None:
        return None
    content = source.get('bytes') if isinstance(source, Mapping) else source
    if isinstance(content, (bytes, bytearray)):
        return bytes(content)
    if not isinstance(content, str):
        return None
    if content.startswith('data:'):
        return content
    if not os.path.isfile(content):
        return None
    try:
        with open(content, 'rb') as file:
            # By its suffix too, for containers that are recognised by it.
            return [Path(content).suffix.lower(), hashlib.file_digest(file, 'blake2b').hexdigest()]
    except OSError:
        return None
