"""The codes of the media of a run, made before it trains: by the codec, once, into a store that workers read."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from align_anything.configs.schema import RunCfgs
from align_anything.core.errors import SampleError, SettingsError
from align_anything.core.store import TensorStore
from align_anything.core.types import Conversation, Example, MediaKind, Message, Piece
from align_anything.datasets.dataset import ExampleDataset, TaskAround
from align_anything.datasets.media.known import KnownMedia, known_store
from align_anything.datasets.media.writing import data_uri, files_of
from align_anything.engines.process_group import device_of_rank
from align_anything.models.codecs.base import Codec
from align_anything.models.codes import CODES, MediaCodes
from align_anything.models.family import FamilySpec
from align_anything.trainers.runs.prepare import prepare_known

FOLDER, SETTING = 'media_codes', 'model_cfgs.media_code_dir'
Media = list[tuple[MediaKind, Any]]


def prepare_codes(cfgs: RunCfgs, spec: FamilySpec, datasets: Sequence[ExampleDataset]) -> KnownMedia | None:
    """Makes the codes of all media of `datasets` that stand as codes in conversations, and lets `spec` read them.

    Returns what is known of these media then, None for a model without codes that are made so. Every rank calls it.
    Codecs are loaded where something is missing, and freed. Media that a codec cannot take are passed over; their rows
    are left out when they are encoded.

    Raises SettingsError for a stream whose first row has media to encode: it is read while it is trained on.
    """
    if spec.codes is None or not any(rules.prepared for rules in spec.codes.rules.values()):
        return None
    folder = cfgs.model_cfgs.media_code_dir or Path(cfgs.logger_cfgs.output_dir) / FOLDER
    device, store = device_of_rank(), TensorStore(folder, FOLDER, '', SETTING)
    spec.codes = spec.codes.with_store(store)
    maker = CodeMaker(store, spec.codes, device)
    known = KnownMedia(known_store(folder, SETTING), spec.codes.stands_as_codes)
    for dataset in datasets:
        if any(source.streamed for source in dataset.sources):
            dataset.of_task(StreamTask(dataset.task, spec.codes)).probe(final=True)
        prepare_known([maker], dataset, MediaTask(dataset.task, spec.codes), known, cfgs, device)
    return known


@dataclass
class MediaTask(TaskAround):
    """The rows of another task, with the media to encode in place of their tokens."""

    codes: MediaCodes

    def encode(self, conversations: list[Conversation]) -> Example:
        """Returns an Example without tokens, whose conversation holds each medium once."""
        found = {id(medium): (kind, medium) for kind, medium in self.codes.missing(conversations)}
        parts = [{'type': kind, kind: medium} for kind, medium in found.values()]
        empty = Piece(torch.zeros(0, dtype=torch.long), torch.zeros(0))
        return Example(empty, [], conversation=[{'role': 'assistant', 'content': parts}])


@dataclass
class StreamTask(MediaTask):
    """The rows of another task, of which none may have media to encode."""

    def encode(self, conversations: list[Conversation]) -> Example:
        """Returns an Example without tokens. Raises SettingsError for media that bring no codes."""
        found = super().encode(conversations)
        if media_of(found):
            raise SettingsError(
                [
                    'data_cfgs.streaming: the media of a stream cannot be made into codes before training. Set it to '
                    'False, or stream rows that bring codes: align-anything tokenize-media writes them.'
                ]
            )
        return found


@dataclass
class RowsTask(MediaTask):
    """The rows of another task as JSON holds them, their media as codes."""

    def encode(self, conversations: list[Conversation]) -> Example:
        """Returns an Example without tokens, whose `meta['conversations']` are plain values.

        Raises SampleError for a row that the other task cannot use.
        """
        self.task.encode(conversations)
        written = [
            [{**message, 'content': [self._written(message, part) for part in message['content']]} for message in turns]
            for turns in conversations
        ]
        empty = Piece(torch.zeros(0, dtype=torch.long), torch.zeros(0))
        return Example(empty, [], meta={'conversations': written})

    def _written(self, message: Message, part: dict[str, Any]) -> dict[str, Any]:
        kind = part['type']
        if kind == 'text':
            return part
        if not self.codes.stands_as_codes(message['role'], kind):
            ((suffix, content), *_) = files_of(kind, part[kind])
            return {'type': kind, kind: data_uri(f'{kind}/{suffix.removeprefix(".")}', content)}
        medium = self.codes.coded(part)
        return {'type': kind, kind: {'codes': medium.codes.tolist(), 'codec': medium.codec}}


@dataclass(frozen=True)
class CodeMaker:
    """Makes the codes of media, an entry of `store` for each medium, with the codecs of `codes` on `device`."""

    store: TensorStore
    codes: MediaCodes
    device: torch.device
    name: str = 'codes of media'
    _open: dict[MediaKind, Codec] = field(default_factory=dict)

    def keys(self, example: Example) -> list[str]:
        """Returns the key of each medium of a row."""
        return [self.codes.key(kind, medium) for kind, medium in media_of(example)]

    def make(
        self, batch: Sequence[Example], keys: Sequence[Sequence[str]], missing: Collection[str]
    ) -> Mapping[str, Mapping[str, Tensor]]:
        """Encodes the media of a batch that are missing, each once."""
        media = {
            key: medium
            for example, own in zip(batch, keys, strict=True)
            for medium, key in zip(media_of(example), own, strict=True)
        }
        return {key: {CODES: codes} for key in missing for codes in self._encoded(*media[key])}

    def _encoded(self, kind: MediaKind, medium: Any) -> list[Tensor]:
        if kind not in self._open:
            self._open[kind] = self.codes.rules[kind].open(self.device)
        try:
            return self._open[kind].encode([medium])
        except SampleError:  # told when the row is encoded
            return []


def media_of(example: Example) -> Media:
    """Returns the media of an Example that a `MediaTask` made, `(kind, decoded)`."""
    return [(part['type'], part[part['type']]) for message in example.conversation for part in message['content']]
