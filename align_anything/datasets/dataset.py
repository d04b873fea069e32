"""From a raw row to an Example: format, bind media, decode, encode. Runs in the data loader's workers."""

from __future__ import annotations

import traceback
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, islice
from typing import Any, ClassVar, NamedTuple, Protocol

from align_anything.core.distributed import is_main
from align_anything.core.errors import FOREIGN_FAULTS, AlignAnythingError, DataError, FilteredError, SampleError
from align_anything.core.logging import get_logger
from align_anything.core.types import ACTION, MEDIA_KINDS, Conversation, Example, MediaKind, Skipped
from align_anything.datasets.conversation import bind_media, without_media, without_prompt_text
from align_anything.datasets.formatters.base import BaseFormatter
from align_anything.datasets.media import KnownMedia, MediaCache, decode_conversations
from align_anything.datasets.media.known import NOTED
from align_anything.datasets.mixture import StreamedRow
from align_anything.datasets.rows import InOrder, Rows, RowStream
from align_anything.datasets.sample_cache import SampleCache
from align_anything.datasets.skips import told_once
from align_anything.datasets.sources import folder_of_row
from align_anything.datasets.spoken_actions import of_dataset
from align_anything.datasets.template_rows import TemplateRow
from align_anything.datasets.unread import looks_like
from align_anything.datasets.windows import Window, Windows, cut

logger = get_logger(__name__)

PROBED_ROWS = 8
ENCODED_ROWS = 8 * PROBED_ROWS
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
        folders: where relative paths start, for each kind of media that has a folder of its own.
        home: folder of the source, where paths start that are not found beside the file of their row.
        media_options: what decoding each kind should heed, such as `{'video': {'num_frames': 8}}`.
        cache: what keeps decoded media for rows to come; sources may share it.
        keeps_columns: whether an environment has the rows, and in `meta` all columns that no template reads, but media.
        statistics: the dataset whose statistics hold for its actions and states; empty for that which a space goes by.
    """

    rows: Rows | RowStream
    formatter: BaseFormatter
    name: str
    folders: Mapping[str, str] = field(default_factory=dict)
    home: str = ''
    streamed: bool = False
    media_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    cache: MediaCache | None = None
    keeps_columns: bool = False
    statistics: str = ''

    def starts(self, name: str) -> dict[str, str | list[str]]:
        """Returns where relative paths of each kind start in the row of that name."""
        beside = [folder for folder in dict.fromkeys((folder_of_row(name), self.home)) if folder] or ['']
        return {kind: self.folders.get(kind) or beside for kind in MEDIA_KINDS}


class Emptied(NamedTuple):
    """A row whose prompt text is left empty: its number in the concatenation, or a `StreamedRow`."""

    row: int | StreamedRow


class Windowed(NamedTuple):
    """A row of which a window is taken: its number in the concatenation, or a `StreamedRow`."""

    row: int | StreamedRow
    window: Window


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


@dataclass
class TaskAround:
    """The rows of another task. A class derived from it makes something else of their conversations."""

    task: Task

    @property
    def needs_reply(self) -> bool:
        """That of the task."""
        return self.task.needs_reply

    @property
    def needs_other(self) -> bool:
        """That of the task."""
        return self.task.needs_other

    def format(self, formatter: BaseFormatter, row: dict[str, Any], other: dict[str, Any] | None = None) -> Formatted:
        """Returns the conversations of the task."""
        return self.task.format(formatter, row, other)

    def encode(self, conversations: list[Conversation]) -> Example:
        """Returns the Example of the task."""
        return self.task.encode(conversations)


@dataclass
class Remembering(TaskAround):
    """A task that keeps the conversations it encoded last."""

    conversations: list[Conversation] = field(default_factory=list)

    def encode(self, conversations: list[Conversation]) -> Example:
        """Returns the Example of the task."""
        self.conversations = conversations
        return super().encode(conversations)


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


class ExampleDataset:
    """Rows of several sources as Examples; index by a number of the concatenation, or by a `StreamedRow`.

    Either may be `Emptied` or `Windowed`.

    A row that can't be used comes back as `Skipped`, the same way on every rank. `sizes` are the rows of each source;
    `known` is what is known of media that need not be decoded, None where all are.

    Args:
        sources: the sources, in the order of the mixture.
        task: what to make of each row.
        pair: the modality pair of the run, named in errors.
        allowed_media: the media kinds that the pair takes in.
        media_options: what the model asks of decoding, such as `{'audio': {'rate': 16000}}`; over that of the sources.
        kept: what keeps Examples on disk, for this task and its encoder.
        drop_truncated: whether rows are left out whose answers are truncated.
        answers: the kinds of which answers are one medium and nothing else; none where they may be text.
        windows: how episodes are cut; rows that are asked for without a window have that of the first epoch.
        shown: whether something else than the rows shows media, so that it is no surprise where they hold none.

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
        drop_truncated: bool = False,
        answers: frozenset[MediaKind] = frozenset(),
        windows: Windows | None = None,
        shown: bool = False,
    ) -> None:
        self._answers, self._shown = answers, shown or any(source.keeps_columns for source in sources)
        self.windows = windows if windows is not None and windows.cuts else None
        self.sources, self.task = list(sources), task
        streamed = [source.name for source in self.sources if source.streamed]
        if task.needs_other and streamed:
            raise DataError(
                f"'{streamed[0]}' is streamed, but this algorithm compares each answer with that of another row: set "
                'data_cfgs.streaming: False.'
            )
        self._pair, self._allowed, self._media_options = pair, allowed_media, media_options or {}
        self._kept, self._drop_truncated = kept, drop_truncated
        self.known: KnownMedia | None = None
        self.sizes = [0 if source.streamed else len(source.rows) for source in self.sources]
        self._ends = list(accumulate(self.sizes))

    def __len__(self) -> int:
        """Rows of all indexed sources together; streams have no length."""
        return self._ends[-1]

    def __getitem__(self, index: int | StreamedRow | Emptied | Windowed) -> Example | Skipped:
        name, emptied, window = '', isinstance(index, Emptied), None
        if isinstance(index, Windowed):
            window = index.window
        if isinstance(index, (Emptied, Windowed)):
            index = index.row
        try:
            if isinstance(index, StreamedRow):
                number, name, row = index.source_index, index.name, index.row
                source = self.sources[number]
                if isinstance(row, SampleError):
                    raise row
            else:
                number, at = self._at(index)
                source = self.sources[number]
                name = source.rows.row_name(at)
                row = source.rows[at]
            view = self._view(source, name, row)
            other = self._other(source, at) if self.task.needs_other else None
            conversations, meta = self._cut(name, *self._conversations(source, name, view, other), window)
            if emptied:
                conversations = list(map(without_prompt_text, conversations))
            example = self._example(source, name, conversations)
        except SampleError as error:
            return Skipped(name, str(error), isinstance(error, FilteredError))
        example.source, example.source_index = name, number
        example.meta.update({**(view.unread_values() if source.keeps_columns else {}), **without_media(meta)})
        return example

    def of_task(self, task: Task, known: KnownMedia | None = None) -> ExampleDataset:
        """Returns the same rows for another task, whose Examples are not kept."""
        rows = ExampleDataset(self.sources, task, self._pair, self._allowed, self._media_options, shown=self._shown)
        rows.known = known
        return rows

    def unformatted(self, index: int) -> Skipped | None:
        """Returns why a row makes no conversations, None where it does; nothing is decoded or encoded."""
        made = self.formatted(index)
        return made if isinstance(made, Skipped) else None

    def name_of(self, index: int) -> str:
        """Returns what reports call a row."""
        number, at = self._at(index)
        return self.sources[number].rows.row_name(at)

    def formatted(self, index: int) -> list[Conversation] | Skipped:
        """Returns the conversations of a row, whole episodes too, its media not decoded."""
        made = self.recorded(index)
        return made if isinstance(made, Skipped) else made[0]

    def recorded(self, index: int) -> tuple[list[Conversation], dict[str, Any], int] | Skipped:
        """Returns the conversations of a row as `formatted` does, its meta record, and the number of its source."""
        number, at = self._at(index)
        source = self.sources[number]
        name = source.rows.row_name(at)
        try:
            view = self._view(source, name, source.rows[at])
            other = self._other(source, at) if self.task.needs_other else None
            return *self._conversations(source, name, view, other), number
        except SampleError as error:
            return Skipped(name, str(error), isinstance(error, FilteredError))

    def _at(self, index: int) -> tuple[int, int]:
        """The source that an index of the concatenation is in, and the row there."""
        number = bisect_right(self._ends, index)
        return number, index - self._ends[number] + self.sizes[number]

    def probe(self, final: bool = False) -> None:
        """Makes an Example of one of the first rows of each source, to find what is wrong before weights are loaded.

        At first, while the checkpoint is not read, it finds a wrong template: where the pair takes media it also looks
        for some in the first rows, and warns when no source has any. The `final` probe encodes as the run does.

        Raises:
            DataError: not one of the first rows of a source can be used, with the reasons (rows that are filtered count
                only where there are no others, in the final probe); or none of them holds media while a column that
                nobody read looks like media, or while answers are media and nothing else.
        """
        shows_media = [self._probe(source, final) for source in self.sources]
        if self._answers and not any(shows_media):
            kind = ' or '.join(sorted(self._answers))
            raise DataError(
                f"the pair '{self._pair}' learns answers that are one {kind}, but no answer is one in the first rows "
                f'of {", ".join(source.name for source in self.sources)}. Templates that map columns read answers as '
                f'media with train_template_kwargs {{answers: {kind}}} (eval_template_kwargs for evaluation data).'
            )
        if self._allowed and not (self._shown or any(shows_media)) and is_main():
            logger.warning(
                "the first rows hold no %s: the pair '%s' will train on their text alone, unless later rows do.",
                ' or '.join(sorted(self._allowed)),
                self._pair,
            )

    def _probe(self, source: Source, final: bool) -> bool:
        """Probes one source; returns whether its first rows hold media, as far as that is asked."""
        rows = ENCODED_ROWS if final else PROBED_ROWS
        unusable: list[Skipped] = []
        usable, failed, unread = 0, 0, {}
        for name, row in islice(source.rows if source.streamed else InOrder(source.rows), PROBED_AT_MOST):
            try:
                if isinstance(row, SampleError):
                    raise row
                view = self._view(source, name, row)
                conversations, meta = self._conversations(source, name, view, view)
                conversations, _ = self._cut(name, conversations, meta)
                if not usable:
                    self._example(source, name, conversations)
            except SampleError as error:
                unusable.append(Skipped(name, str(error), isinstance(error, FilteredError)))
                failed += not unusable[-1].filtered
            else:
                turns = [conversation[-1:] if self._answers else conversation for conversation in conversations]
                if final or not self._allowed or any(map(_kinds, turns)):
                    return True
                usable += 1
                found = {column: looks_like(value) for column, value in view.unread().items()}
                unread |= {column: kind for column, kind in found.items() if self._wants(source, kind, row)}
            if rows in (usable, failed):
                break
        if not usable and (failed or (final and len(unusable) < PROBED_AT_MOST)):
            raise self._unusable(source, unusable, final)
        if unread:
            columns = ' and '.join(f"column '{column}', which nobody reads, looks like it" for column in unread)
            raise DataError(
                f"'{source.name}' gives the pair '{self._pair}' no {' or '.join(sorted(set(unread.values())))} in its "
                f'first {usable} rows, but {columns}. '
                + ' '.join(_advice(source, column, kind) for column, kind in unread.items())
            )
        # Rows that are all filtered tell nothing.
        return not usable

    def _unusable(self, source: Source, unusable: list[Skipped], final: bool) -> DataError:
        failed = [record for record in unusable if not record.filtered]
        if not failed:
            what = f"every row of '{source.name}' is filtered, so none is left to train on:"
        elif final:
            what = f"none of the first {len(failed)} rows of '{source.name}' can be encoded for this model:"
        else:
            what = (
                f"none of the first {len(failed)} rows of '{source.name}' can be used with template "
                f"'{source.formatter.name}'. Choose another template, or map its columns with "
                'train_template_kwargs (eval_template_kwargs for evaluation data):'
            )
        return DataError(f'{what}\n{told_once(failed or unusable)}')

    def _wants(self, source: Source, kind: MediaKind | None, row: Mapping[str, Any]) -> bool:
        """Whether media of a kind would be used, and the template neither has a column of it nor was told otherwise."""
        has_column = bool({kind, f'{kind}s'} & row.keys()) or source.formatter.given(f'{kind}s') is not None
        return kind in self._allowed and not has_column

    def _other(self, source: Source, at: int) -> TemplateRow:
        """The next row of the source, which each row has for the same neighbour however rows are batched."""
        size = len(source.rows)
        for step in range(1, min(size, OTHERS_TRIED + 1)):
            other = (at + step) % size
            try:
                view = self._view(source, source.rows.row_name(other), source.rows[other])
                self._validate(source, view)
            except SampleError:
                continue
            return view
        raise SampleError(f"'{source.name}' has no other row near this one to compare its answer with.")

    def _view(self, source: Source, name: str, row: dict[str, Any]) -> TemplateRow:
        return TemplateRow(row, source.formatter, source.starts(name))

    def _conversations(
        self, source: Source, name: str, row: TemplateRow, other: TemplateRow | None
    ) -> tuple[list[Conversation], dict[str, Any]]:
        """The conversations of a row in normal form, media not decoded, and its meta record."""
        written, meta = self._format(source, row, other)
        options = {
            kind: {**source.media_options.get(kind, {}), **self._media_options.get(kind, {})} for kind in MEDIA_KINDS
        }
        conversations = [
            bind_media(conversation, meta, source.starts(name), options=options, needs_reply=self.task.needs_reply)
            for conversation in written
        ]
        for conversation in conversations:
            self._check_media(name, conversation)
        if source.statistics:
            conversations = [of_dataset(conversation, source.statistics) for conversation in conversations]
        return conversations, meta

    def _cut(
        self, name: str, conversations: list[Conversation], meta: dict[str, Any], window: Window | None = None
    ) -> tuple[list[Conversation], dict[str, Any]]:
        """The window of a row, where rows are cut."""
        if self.windows is None:
            return conversations, meta
        window = self.windows.of(name, 0) if window is None else window
        cuts, metas = zip(*(cut(turns, meta, window) for turns in conversations), strict=True)
        return list(cuts), metas[0]

    def _format(self, source: Source, row: TemplateRow, other: TemplateRow | None) -> Formatted:
        self._validate(source, row)
        written, meta = self._foreign(source, row, partial(self._written, source.formatter, row, other))
        if not any(written):
            raise FilteredError(f"template '{source.formatter.name}' gives no conversation for the row")
        for view in filter(None, (row, other)):
            written, meta = view.stored(written), view.stored(meta)
        return written, meta

    def _written(self, formatter: BaseFormatter, row: TemplateRow, other: TemplateRow | None) -> Formatted:
        written, meta = self.task.format(formatter, row, other)
        return list(written), dict(meta)

    def _validate(self, source: Source, row: TemplateRow) -> None:
        if not self._foreign(source, row, partial(source.formatter.check_validation, row)):
            raise FilteredError(f"template '{source.formatter.name}' rejects the row (its check_validation says so)")

    def _foreign(self, source: Source, row: TemplateRow, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except AlignAnythingError:
            raise
        except FOREIGN_FAULTS as error:  # a formatter is foreign code: its fault costs the row and is reported
            raise SampleError(
                f"template '{source.formatter.name}' failed with {type(error).__name__}: {error} "
                f'(columns of the row: {", ".join(map(str, row))})'
            ) from error

    def _check_media(self, name: str, conversation: Conversation) -> None:
        for kind in sorted(_kinds(conversation) - self._allowed):
            takes = ', '.join(('text', *sorted(self._allowed)))
            what = 'actions' if kind == ACTION else f'{kind} media'
            raise DataError(
                f"{name}: the row holds {what}, but the pair '{self._pair}' takes only {takes}. Use the trainer "
                f'of a pair with {kind} in it, or leave such rows out of the dataset. Where the column is not meant, a '
                f"template that maps columns leaves it alone with train_template_kwargs {{{kind}s: ''}}."
            )

    def _example(self, source: Source, name: str, conversations: list[Conversation]) -> Example:
        """The Example of a row, the one kept where there is one."""
        make = partial(self._encode, source, name, conversations)
        example = make() if self._kept is None else self._kept.example(conversations, make)
        if self._drop_truncated and any(response.truncated for response in example.responses):
            raise FilteredError('its answer is longer than model_cfgs.model_max_length (data_cfgs.drop_truncated)')
        return example

    def _encode(self, source: Source, name: str, conversations: list[Conversation]) -> Example:
        lookup = None if self.known is None else self.known.lookup(conversations)
        decoded = decode_conversations(conversations, source.cache, lookup)
        try:
            example = self._of_task(name, decoded)
        except SampleError:
            if lookup is None or not lookup.found:
                raise
            # What was to be found is not there, or the row is wrong: decoding all of it tells.
            example = self._of_task(name, decode_conversations(conversations, source.cache))
        if lookup is not None and lookup.noted:
            example.meta[NOTED] = lookup.noted
        return example

    def _of_task(self, name: str, decoded: list[Conversation]) -> Example:
        try:
            return self.task.encode(decoded)
        except AlignAnythingError:
            raise
        except Exception as error:
            raise DataError(
                f'{name}: encoding this row failed with {type(error).__name__}: {error}\n{traceback.format_exc()}'
            ) from error


def _kinds(conversation: Conversation) -> set[str]:
    """The kinds of media that a conversation holds, actions among them."""
    return {part['type'] for message in conversation for part in message['content']} & {*MEDIA_KINDS, ACTION}


def _advice(source: Source, column: str, kind: str) -> str:
    if f'{kind}s' in source.formatter.option_defaults():
        return (
            f'Map it with train_template_kwargs {{{kind}s: {column}}} (eval_template_kwargs for evaluation data), or '
            f"say {{{kind}s: ''}} if it is not meant."
        )
    return f"Choose a template that reads '{column}', write one, or take the column out."
