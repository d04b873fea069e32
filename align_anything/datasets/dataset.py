"""From a raw row to an Example: format, bind media, decode, encode. Runs in the data loader's workers."""

from __future__ import annotations

import traceback
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, islice
from typing import Any, ClassVar, Protocol

from align_anything.core.errors import AlignAnythingError, DataError, SampleError
from align_anything.core.types import MEDIA_KINDS, Conversation, Example, MediaKind, Skipped
from align_anything.datasets.conversation import bind_media, without_media
from align_anything.datasets.formatters.base import BaseFormatter
from align_anything.datasets.media import MediaCache, decode_conversations
from align_anything.datasets.mixture import StreamedRow
from align_anything.datasets.rows import InOrder, Rows, RowStream
from align_anything.datasets.sample_cache import SampleCache

PROBED_ROWS = 8
PROBED_AT_MOST = 10 * PROBED_ROWS
OTHERS_TRIED = 8

Formatted = tuple[list[Any], dict[str, Any]]
"""Conversations as the formatter wrote them, and its meta record."""


@dataclass(frozen=True)
class Source:
    """One source of a dataset.

    Attributes:
        rows: its rows; read in order only when `streamed`.
        formatter: its template.
        name: what messages call it.
        folders: where relative paths start, for each kind of media that may have them.
        media_options: what decoding each kind should heed, such as `{'video': {'num_frames': 8}}`.
        cache: what keeps decoded media for rows to come; sources may share it.
    """

    rows: Rows | RowStream
    formatter: BaseFormatter
    name: str
    folders: Mapping[str, str] = field(default_factory=dict)
    streamed: bool = False
    media_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    cache: MediaCache | None = None


class Task(Protocol):
    """What a kind of training wants of a row: the formatter hook that makes conversations, and their encoding.

    `needs_reply` says whether a conversation must hold an assistant turn, `needs_other` whether `format` wants another
    row of the same source beside the one to format.
    """

    needs_reply: bool
    needs_other: bool

    def format(
        self, formatter: BaseFormatter, row: dict[str, Any], other: dict[str, Any] | None = None
    ) -> Formatted: ...

    def encode(self, conversations: list[Conversation]) -> Example: ...


@dataclass(frozen=True)
class SupervisedTask:
    """One conversation with its answers in it.

    Attributes:
        encode_conversation: `FamilySpec.encode`.
        train_on: `all_assistant`, `last` or `all`.
    """

    encode_conversation: Callable[..., Example]
    train_on: str = 'all_assistant'
    needs_reply: ClassVar[bool] = True
    needs_other: ClassVar[bool] = False

    def format(self, formatter: BaseFormatter, row: dict[str, Any], other: dict[str, Any] | None = None) -> Formatted:
        """Returns the row's one conversation."""
        conversation, meta = formatter.format_supervised_sample(row)
        return [conversation], meta

    def encode(self, conversations: list[Conversation]) -> Example:
        """Returns the Example of the one conversation, media decoded."""
        return self.encode_conversation(conversations[0], train_on=self.train_on)


class _Rejected(SampleError):
    """The template's own `check_validation` said no: a matter of that row, not a sign of a wrong template."""


class ExampleDataset:
    """Rows of several sources as Examples; index by a number of the concatenation, or by a `StreamedRow`.

    A row that can't be used comes back as `Skipped`, the same way on every rank. `sizes` are the rows of each source.

    Args:
        sources: the sources, in the order of the mixture.
        task: what to make of each row.
        pair: the modality pair of the run, named in errors.
        allowed_media: the media kinds that the pair takes in.
        media_options: what the model asks of decoding, such as `{'audio': {'rate': 16000}}`; over that of the sources.
        kept: what keeps Examples on disk, for this task and its encoder.

    Raises:
        DataError: a source is streamed whose rows have to be seen beside each other; (when a row is read) it holds
            media of a kind that the pair doesn't allow, its template lacks the hook, or encoding fails in a way that
            isn't the row's fault.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        task: Task,
        pair: str,
        allowed_media: frozenset[MediaKind],
        media_options: Mapping[str, Mapping[str, Any]] | None = None,
        kept: SampleCache | None = None,
    ) -> None:
        self.sources, self.task = list(sources), task
        streamed = [source.name for source in self.sources if source.streamed]
        if task.needs_other and streamed:
            raise DataError(
                f"'{streamed[0]}' is streamed, but this algorithm compares each answer with that of another row: set "
                'data_cfgs.streaming: False.'
            )
        self._pair, self._allowed, self._media_options = pair, allowed_media, media_options or {}
        self._kept = kept
        self.sizes = [0 if source.streamed else len(source.rows) for source in self.sources]
        self._ends = list(accumulate(self.sizes))

    def __len__(self) -> int:
        """Rows of all indexed sources together; streams have no length."""
        return self._ends[-1]

    def __getitem__(self, index: int | StreamedRow) -> Example | Skipped:
        name = ''
        try:
            if isinstance(index, StreamedRow):
                number, name, row = index.source_index, index.name, index.row
                source = self.sources[number]
                if isinstance(row, SampleError):
                    raise row
            else:
                number = bisect_right(self._ends, index)
                source = self.sources[number]
                at = index - self._ends[number] + self.sizes[number]
                name = source.rows.row_name(at)
                row = source.rows[at]
            other = self._other(source, at) if self.task.needs_other else None
            conversations, meta = self._conversations(source, name, row, other)
            make = partial(self._encode, source, name, conversations)
            example = make() if self._kept is None else self._kept.example(conversations, make)
        except SampleError as error:
            return Skipped(name, str(error))
        example.source, example.source_index = name, number
        example.meta.update(without_media(meta))
        return example

    def probe(self, rows: int = PROBED_ROWS) -> None:
        """Makes Examples of the first rows of each source, to find a wrong template or task before a model loads.

        Raises:
            DataError: not one of the first `rows` rows of a source can be used (rows that the template's own check
                rejects aren't counted), with the reasons.
        """
        for source in self.sources:
            failures: list[str] = []
            for name, row in islice(source.rows if source.streamed else InOrder(source.rows), PROBED_AT_MOST):
                try:
                    if isinstance(row, SampleError):
                        raise row
                    conversations, _ = self._conversations(source, name, row, row)
                    self._encode(source, name, conversations)
                    failures = []
                    break
                except _Rejected:
                    continue
                except SampleError as error:
                    failures.append(f'- {name}: {error}')
                    if len(failures) == rows:
                        break
            if failures:
                raise DataError(
                    f"none of the first {len(failures)} rows of '{source.name}' can be used with template "
                    f"'{source.formatter.name}'. Choose another template, or map its columns with template_kwargs:\n"
                    + '\n'.join(failures)
                )

    def _other(self, source: Source, at: int) -> dict[str, Any]:
        """The next row of the source, which each row has for the same neighbour however rows are batched."""
        size = len(source.rows)
        for step in range(1, min(size, OTHERS_TRIED + 1)):
            try:
                return source.rows[(at + step) % size]
            except SampleError:
                continue
        raise SampleError(f"'{source.name}' has no other row near this one to compare its answer with.")

    def _conversations(
        self, source: Source, name: str, row: dict[str, Any], other: dict[str, Any] | None
    ) -> tuple[list[Conversation], dict[str, Any]]:
        """The conversations of a row in normal form, media not decoded, and its meta record."""
        written, meta = self._format(source, row, other)
        options = {
            kind: {**source.media_options.get(kind, {}), **self._media_options.get(kind, {})} for kind in MEDIA_KINDS
        }
        conversations = [
            bind_media(conversation, meta, source.folders, options=options, needs_reply=self.task.needs_reply)
            for conversation in written
        ]
        for conversation in conversations:
            self._check_media(name, conversation)
        return conversations, meta

    def _format(self, source: Source, row: dict[str, Any], other: dict[str, Any] | None) -> Formatted:
        try:
            if not source.formatter.check_validation(row):
                raise _Rejected(f"template '{source.formatter.name}' rejects the row (its check_validation says so)")
            written, meta = self.task.format(source.formatter, row, other)
            return list(written), dict(meta)
        except AlignAnythingError:
            raise
        except Exception as error:  # a formatter is foreign code: its fault costs the row and is reported
            raise SampleError(
                f"template '{source.formatter.name}' failed with {type(error).__name__}: {error} "
                f'(columns of the row: {", ".join(map(str, row))})'
            ) from error

    def _check_media(self, name: str, conversation: Conversation) -> None:
        kinds = {part['type'] for message in conversation for part in message['content']} & set(MEDIA_KINDS)
        for kind in sorted(kinds - self._allowed):
            takes = ', '.join(('text', *sorted(self._allowed)))
            raise DataError(
                f"{name}: the row holds {kind} media, but the pair '{self._pair}' takes only {takes}. Use the trainer "
                f'of a pair with {kind} in it, or leave such rows out of the dataset.'
            )

    def _encode(self, source: Source, name: str, conversations: list[Conversation]) -> Example:
        decoded = decode_conversations(conversations, source.cache)
        try:
            return self.task.encode(decoded)
        except AlignAnythingError:
            raise
        except Exception as error:
            raise DataError(
                f'{name}: encoding this row failed with {type(error).__name__}: {error}\n{traceback.format_exc()}'
            ) from error
