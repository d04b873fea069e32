"""Media as token ids: where the codes of each kind stand in a vocabulary, and what may stand around them.

Codes are ids: what a model writes of a picture is a run of tokens like any other. A mark in the text stands for them
while the chat template renders a conversation, and is then replaced by their ids.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Tensor

from align_anything.core.actions import Actions
from align_anything.core.contents import Known, content_of
from align_anything.core.errors import SampleError
from align_anything.core.store import TensorStore, digest
from align_anything.core.types import CodedMedia, Conversation, Embedding, MediaKind
from align_anything.models.codecs.base import CodecRules
from align_anything.models.frames import FURTHER

T = TypeVar('T')
Span = tuple[int, int]
"""Ids from the first one up to, but without, the second one."""
CODES = 'codes'
"""The tensor of a stored entry, and the key of a part that holds the codes of its medium beside it."""
MARK = re.compile('\ue0c0([0-9]+)\ue0c1')
"""What stands for a medium in a text; characters of the private area, which rows may not hold."""
PRIVATE = re.compile('[\ue0c0\ue0c1]')
DIMENSIONS: Mapping[MediaKind, int] = {'image': 2, 'audio': 1, 'video': 3, 'action': 1}
"""Of the grid of codes of each kind."""
TEXT = 0
"""The number of the set of all ids that are no codes."""
CHUNK = 'chunk'
"""The token tensor that counts the codes of a medium whose codes are sampled at once from 1 on; 0 elsewhere."""


@dataclass(frozen=True)
class KindOfCodes:
    """The tokens of one kind of media.

    Attributes:
        kind: image, video or audio.
        books: entries of each code book.
        first: id of the first entry of each book.
        opening, closing: ids before and behind the codes.
        row_end: id behind each row of a picture, None for none.
        size: the only grid that media have, such as `(height, width)` in codes; None where media differ.
        longest: most tokens of a medium between its opening and closing; None for no limit.
        further: entries of the books behind those `books`, whose codes are no tokens: they ride beside the token of
            their frame (`models/frames.py`).
        end_code: the code of the first book whose row of the output head scores the closing too, because a frame of
            nothing else is what ends a medium; None where the closing has a row of its own.
        unused: rows of that head behind the codes of a book, which stand for nothing.
        in_text: whether its ids may stand in texts that are read too, where they are what they were before.
        parallel: whether all codes of a medium are sampled at once: in the place of each the model reads the first code
            of a book, and these placeholders see each other. The end behind them is no choice.
    """

    kind: MediaKind
    books: tuple[int, ...]
    first: tuple[int, ...]
    opening: tuple[int, ...] = ()
    closing: tuple[int, ...] = ()
    row_end: int | None = None
    size: tuple[int, ...] | None = None
    longest: int | None = None
    further: tuple[int, ...] = ()
    end_code: int | None = None
    unused: int = 0
    in_text: bool = False
    parallel: bool = False

    def opening_of(self, grid: Sequence[int]) -> tuple[int, ...]:
        """Returns the ids before the codes of a medium of that grid; some families write its size there."""
        return self.opening

    def length(self, grid: Sequence[int]) -> int:
        """Returns how many tokens a medium of that grid takes, opening and closing included."""
        ends = 0 if self.row_end is None else math.prod(grid[:-1])
        return len(self.opening_of(grid)) + math.prod(grid) * len(self.books) + ends + len(self.closing)

    @property
    def spans(self) -> list[Span]:
        """The ids of each book."""
        return [(first, first + size) for first, size in zip(self.first, self.books, strict=True)]

    @property
    def open_ended(self) -> bool:
        """Whether the model decides how long a medium gets, frame by frame."""
        return self.size is None and self.row_end is None

    def written(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the ids of codes `(books, *grid)` and of each whether it could have been another, `(length,)` both.

        The books of a position stand side by side, positions follow row by row; of books whose codes are no tokens
        there is nothing.
        """
        codes, grid = codes[: len(self.books)], codes.shape[1:]
        offsets = torch.tensor(self.first)
        rows = (codes.movedim(0, -1) + offsets).reshape(-1, grid[-1] * len(self.books))
        free = torch.ones_like(rows, dtype=torch.bool)
        if self.row_end is not None:
            rows = torch.cat([rows, rows.new_full((len(rows), 1), self.row_end)], 1)
            free = torch.cat([free, free.new_zeros((len(free), 1))], 1)
        opening, closing = torch.tensor(self.opening_of(grid)).long(), torch.tensor(self.closing).long()
        # The first token opens a medium where a text might have gone on; the first one behind it ends one that might.
        begins = torch.zeros(len(opening), dtype=torch.bool)
        begins[:1] = True
        ends = torch.zeros(len(closing), dtype=torch.bool)
        ends[:1] = self.open_ended
        return torch.cat([opening, rows.flatten(), closing]), torch.cat([begins, free.flatten(), ends])

    def told(self, codes: Tensor, length: int) -> Tensor:
        """Returns which of its tokens say something of the medium, all but what it is padded with, `(length,)`."""
        return torch.ones(length, dtype=torch.bool)

    def beside(self, codes: Tensor) -> Tensor:
        """Returns the codes `(books, frames)` of sounds that ride beside their tokens, `(length, books - 1)`."""
        frames = codes[len(self.books) :].t()
        end = frames.new_full((len(self.closing), frames.shape[1]), self.end_code or 0)
        return torch.cat([frames.new_zeros(len(self.opening), frames.shape[1]), frames, end])

    def read(self, ids: Sequence[int]) -> Tensor | None:
        """Returns the codes `(books, *grid)` of ids between opening and closing, None where they are no whole medium.

        Audio is a row of frames. Pictures have the rows that their row ends say, else the size that all have, else
        they are square. Videos have the size that all have.
        """
        rows, row = [], []
        for token in ids:
            if token == self.row_end:
                rows.append(row)
                row = []
            else:
                row.append(token)
        if self.row_end is not None and row:
            return None
        rows = rows if self.row_end is not None else [row]
        width, rest = divmod(len(rows[0]), len(self.books)) if rows else (0, 1)
        if rest or not width or any(len(other) != len(rows[0]) for other in rows):
            return None
        codes = torch.tensor(rows).view(-1, len(self.books)) - torch.tensor(self.first)
        if bool((codes < 0).any()) or bool((codes >= torch.tensor(self.books)).any()):
            return None
        grid = self._grid(len(codes), len(rows))
        return None if grid is None else codes.t().reshape(len(self.books), *grid)

    def _grid(self, positions: int, rows: int) -> tuple[int, ...] | None:
        if self.size is not None:
            return self.size if math.prod(self.size) == positions else None
        if self.kind == 'audio':
            return (positions,)
        if self.kind == 'video':  # nothing says where a frame ends
            return None
        if self.row_end is not None:
            return rows, positions // rows
        side = math.isqrt(positions)
        return (side, side) if side**2 == positions else None


@dataclass(frozen=True)
class MediaCodes:
    """The codes of a family, and what a run makes of them. Picklable.

    Attributes:
        kinds: how each kind is written.
        rules: the codec of each kind.
        prompts: the kinds that stand as codes in prompts too.
        restricted: whether what could not have been another token weighs nothing, and each score is one among the ids
            that could have stood there; else all tokens count, over the whole vocabulary.
        separate: whether the codes have an output head of their own, so that no score can be one among all ids.
        wordless: whether the model writes codes and no text.
        begins: whether a response begins with a medium, so that opening one is no choice.
        weights: what the loss weights of each kind's tokens are multiplied by; 1 where it is not named.
        store: codes that were made before training, by the medium; without one a guess of the right length serves.
    """

    kinds: Mapping[MediaKind, KindOfCodes]
    rules: Mapping[MediaKind, CodecRules]
    prompts: frozenset[MediaKind] = frozenset()
    restricted: bool = False
    separate: bool = False
    wordless: bool = False
    begins: bool = False
    weights: Mapping[MediaKind, float] = field(default_factory=dict)
    store: TensorStore | None = None

    @property
    def ranged(self) -> bool:
        """Whether the score of an id is one among those that could have stood there."""
        return self.restricted or self.separate

    @property
    def further(self) -> int:
        """How many codes ride beside the token of a frame; 0 where every code is a token."""
        return max(len(own.further) for own in self.kinds.values())

    @property
    def parallel(self) -> KindOfCodes | None:
        """The kind of media whose codes are sampled at once, None where there is none."""
        return next((own for own in self.kinds.values() if own.parallel), None)

    def read_as(self, ids: Tensor, chunk: Tensor) -> Tensor:
        """Returns ids as the model reads them: placeholders where `chunk` counts codes that are sampled at once."""
        first = torch.tensor(self.parallel.first)
        return torch.where(chunk > 0, first[(chunk - 1) % len(first)], ids)

    @property
    def closings(self) -> set[int]:
        """The ids that end media, a turn with it or not."""
        return {token for own in self.kinds.values() for token in own.closing[-1:]}

    def marked(self, conversations: Sequence[Conversation]) -> tuple[list[Conversation], tuple[CodedMedia, ...]]:
        """Returns conversations with a mark in the text for each medium that is written as codes, and those codes.

        The number in a mark is that of its medium among them, the same wherever it is the same object.

        Raises SampleError for media whose codes are not there, or do not fit, and for text that holds marks.
        """
        numbers: dict[int, int] = {}
        found: list[CodedMedia] = []

        def part_of(role: str, part: dict[str, Any]) -> dict[str, Any]:
            kind = part['type']
            if kind == 'text':
                if PRIVATE.search(part['text']):
                    raise SampleError('the text holds characters that stand for media here (U+E0C0, U+E0C1)')
                return part
            if not self.stands_as_codes(role, kind):
                return part
            if id(part[kind]) not in numbers:
                numbers[id(part[kind])] = len(found)
                found.append(self.coded(part))
            return {'type': 'text', 'text': f'\ue0c0{numbers[id(part[kind])]}\ue0c1'}

        marked = [
            [
                {**message, 'content': [part_of(message['role'], part) for part in message['content']]}
                for message in conversation
            ]
            for conversation in conversations
        ]
        return marked, tuple(found)

    def stands_as_codes(self, role: str, kind: str) -> bool:
        """Whether a part of this type is written as codes in the turns of a role."""
        return kind in self.kinds and (role == 'assistant' or kind in self.prompts)

    def coded(self, part: Mapping[str, Any]) -> CodedMedia:
        """Returns the codes of a media part: those beside the medium, or those that it is, or the stored ones.

        Raises SampleError where there are none, or they do not fit the codec.
        """
        kind = part['type']
        rules = self.rules[kind]
        beside = part.get(CODES)
        if beside is not None and beside.codec == rules.fingerprint:
            return self._checked(beside)
        medium = part[kind]
        if type(medium) is CodedMedia:
            return self._checked(medium)
        if type(medium) is Actions:
            return rules.coded(medium)
        if type(medium) is Embedding:
            raise SampleError(f'the row has an embedding as {kind}, and this model reads and writes the codes of it')
        if self.store is None:
            return self._checked(CodedMedia(kind, _guessed(medium, rules), rules.fingerprint))
        entry = self.store.get(self.key(kind, medium))
        if entry is None:
            if type(medium) is not Known:
                rules.grid(medium)  # says why, where the codec cannot take it
            raise SampleError(
                f'there are no codes of an {kind} of this row in {self.store.folder}: it could not be encoded, or has '
                'changed since the codes were made'
            )
        return self._checked(CodedMedia(kind, entry.tensors[CODES], rules.fingerprint))

    def key(self, kind: MediaKind, medium: Any) -> str:
        """Returns the key of a decoded medium in the store."""
        return self.store.key(kind, self.rules[kind].fingerprint, content_of(medium))

    def missing(self, conversations: Sequence[Conversation]) -> list[tuple[MediaKind, Any]]:
        """Returns the media of conversations that are written as codes and bring none, `(kind, decoded)`."""
        return [
            (part['type'], part[part['type']])
            for conversation in conversations
            for message in conversation
            for part in message['content']
            if self.stands_as_codes(message['role'], part['type'])
            and type(part[part['type']]) not in (CodedMedia, Embedding, Actions)
        ]

    def _checked(self, medium: CodedMedia) -> CodedMedia:
        own, codes = self.kinds[medium.kind], medium.codes
        rules = self.rules[medium.kind]
        if medium.codec not in ('', rules.fingerprint):
            raise SampleError(f'the codes of an {medium.kind} are those of another codec than {rules.folder}')
        books = own.books + own.further
        if codes.shape[0] != len(books):
            raise SampleError(
                f'the codes of an {medium.kind} have {codes.shape[0]} books, but the model writes {len(books)}'
            )
        limits = torch.tensor(books).view(-1, *[1] * (codes.ndim - 1))
        if not codes.numel() or bool((codes < 0).any()) or bool((codes >= limits).any()):
            raise SampleError(
                f'the codes of an {medium.kind} are not from 0 to {max(own.books) - 1}, or there are none'
            )
        if own.size is not None and tuple(codes.shape[1:]) != own.size:
            raise SampleError(
                f'an {medium.kind} has {_times(codes.shape[1:])} codes, but the model writes {_times(own.size)}'
            )
        tokens = own.length(codes.shape[1:]) - len(own.opening_of(codes.shape[1:])) - len(own.closing)
        if own.longest is not None and tokens > own.longest:
            raise SampleError(f'an {medium.kind} has {tokens} tokens, but the model writes {own.longest} at most')
        return medium

    def written(self, medium: CodedMedia) -> tuple[Tensor, Tensor]:
        """Returns the ids of a medium and the share of the loss weight that each of them has, `(length,)` both."""
        ids, free = self.kinds[medium.kind].written(medium.codes)
        if self.begins:
            free = free & (torch.arange(len(ids)) >= len(self.kinds[medium.kind].opening_of(medium.codes.shape[1:])))
        weight = self.weights.get(medium.kind, 1.0)
        counts = free if self.restricted else self.kinds[medium.kind].told(medium.codes, len(ids))
        return ids, torch.where(counts, weight, 0.0)

    def beside(self, medium: CodedMedia) -> dict[str, Tensor]:
        """Returns the token tensors of the tokens of a medium: its codes that are no tokens, or their number."""
        own = self.kinds[medium.kind]
        if own.parallel:
            return {CHUNK: torch.arange(1, own.length(medium.codes.shape[1:]) + 1)}
        return {FURTHER: own.beside(medium.codes)} if own.further else {}

    def is_code(self, ids: Tensor) -> Tensor:
        """Returns of each id whether it is a code, bool of the same shape."""
        found = torch.zeros_like(ids, dtype=torch.bool)
        for own in self.kinds.values():
            for start, stop in own.spans:
                found |= (ids >= start) & (ids < stop)
        return found

    def is_no_text(self, ids: Tensor) -> Tensor:
        """Returns of each id whether no text may hold it, bool of the same shape."""
        kept = {kind: own for kind, own in self.kinds.items() if not own.in_text}
        return replace(self, kinds=kept).is_code(ids)

    def kind_of(self, token: int) -> MediaKind | None:
        """Returns the kind whose code an id is, None for text."""
        return next(
            (kind for kind, own in self.kinds.items() if any(start <= token < stop for start, stop in own.spans)), None
        )

    def last_in(self, ids: Tensor) -> int:
        """Returns the position of the last id that belongs to a medium, what closes it included; -1 for none."""
        codes = self.is_code(ids).nonzero().flatten().tolist()
        if not codes:
            return -1
        own = self.kinds[self.kind_of(int(ids[codes[-1]]))]
        return codes[-1] + (own.row_end is not None) + len(own.closing)

    # Which ids a score is one among

    def sets(self, rows: int) -> list[list[Span]]:
        """Returns the ids that could stand where one of each set stands: text first, then each book of each kind.

        `rows` is how many ids there are. Where a medium may end, the token that ends it is among the first book.
        """
        books = [span for own in self.kinds.values() for span in own.spans]
        return [without(rows, books), *self._among()]

    def set_of(self, ids: Tensor) -> Tensor:
        """Returns the number of the set that each id is sampled from, int64 of the same shape."""
        found = torch.full_like(ids, TEXT)
        for number, spans in self._numbered():
            for start, stop in spans:
                found = torch.where((ids >= start) & (ids < stop), number, found)
        return found

    def rows_of(self, ids: Tensor) -> Tensor:
        """Returns ids with those of closings replaced that a code's row of the output head scores."""
        for own in self.kinds.values():
            if own.end_code is not None:
                ids = torch.where(ids == own.closing[0], own.first[0] + own.end_code, ids)
        return ids

    def by_kind(self, ids: Tensor) -> dict[str, Tensor]:
        """Returns which ids are of which kind, text among them, bool of the same shape by name."""
        numbers, kinds = self.set_of(ids), self.by_set('text', {kind: kind for kind in self.kinds})
        return {
            kind: torch.isin(numbers, torch.tensor([at for at, own in enumerate(kinds) if own == kind]))
            for kind in dict.fromkeys(kinds)
        }

    def weights_of(self, ids: Tensor) -> Tensor:
        """Returns what the loss weights of generated ids are multiplied by, float32 of the same shape."""
        found = torch.tensor(self.by_set(1.0, self.weights))[self.set_of(ids)]
        for kind, own in self.kinds.items():
            if own.opening:
                found = torch.where(ids == own.opening[0], self.weights.get(kind, 1.0), found)
        return found

    def by_set(self, text: T, of_kinds: Mapping[MediaKind, T] = MappingProxyType({})) -> list[T]:
        """Returns a value for each set, in their order: that of its kind, or `text` where there is none."""
        return [text, *(of_kinds.get(kind, text) for kind, own in self.kinds.items() for _ in own.books)]

    def _among(self) -> Iterator[list[Span]]:
        """The ids that each unit of a book is normalised over."""
        for own in self.kinds.values():
            unused = 0 if self.restricted else own.unused
            for book, (start, stop) in enumerate(own.spans):
                yield [(start, stop + unused), *([] if own.end_code is not None else _ending(own, book))]

    def _numbered(self) -> list[tuple[int, list[Span]]]:
        numbered = []
        for own in self.kinds.values():
            for book, span in enumerate(own.spans):
                numbered.append((len(numbered) + 1, [span, *_ending(own, book)]))
        return numbered

    # From ids back to media

    def parts(self, ids: Sequence[int], further: Tensor | None = None) -> list[list[int] | CodedMedia]:
        """Returns ids in stretches of text, as ids, and media between them, without their opening and closing.

        What is no whole medium stays among the text, with its codes. `further` are those that ride beside the ids,
        `(length, books - 1)`.
        """
        parts: list[list[int] | CodedMedia] = []
        text: list[int] = []
        at = 0
        while at < len(ids):
            kind = self.kind_of(ids[at])
            if kind is None:
                text.append(ids[at])
                at += 1
                continue
            own, end = self.kinds[kind], at
            while end < len(ids) and (self.kind_of(ids[end]) == kind or ids[end] == own.row_end):
                end += 1
            codes, behind = own.read(ids[at:end]), tuple(ids[end : end + len(own.closing)])
            before = _opened(own, text, codes)
            if codes is None or behind != own.closing or before is None:
                text += ids[at:end]
                at = end
                continue
            if own.further:
                codes = torch.cat([codes, further[at:end].t()])
            parts += [text[:before]] if before else []
            parts.append(CodedMedia(kind, codes, self.rules[kind].fingerprint))
            text, at = [], end + len(behind)
        return [*parts, text] if text else parts

    def without(self, kind: MediaKind) -> MediaCodes | None:
        """Returns the codes of all other kinds, None where there are no others."""
        kinds = {name: own for name, own in self.kinds.items() if name != kind}
        return replace(self, kinds=kinds, prompts=self.prompts - {kind}) if kinds else None

    def with_store(self, store: TensorStore) -> MediaCodes:
        """Returns the same codes, read from a store."""
        return replace(self, store=store)


def _ending(own: KindOfCodes, book: int) -> list[Span]:
    """The token that may stand in place of a code of a book because media end there."""
    return [(own.closing[0], own.closing[0] + 1)] if own.open_ended and book == 0 and own.closing else []


def _opened(own: KindOfCodes, text: Sequence[int], codes: Tensor | None) -> int | None:
    """How many ids of a text stand before the opening of a medium at its end; None where there is no opening."""
    if codes is None:
        return None
    opening = own.opening_of(codes.shape[1:])
    before = len(text) - len(opening)
    return before if tuple(text[max(0, before) :]) == opening and before >= 0 else None


def _guessed(medium: Any, rules: CodecRules) -> Tensor:
    """Codes of the right shape, which differ where media do: lengths are right before any codec was loaded."""
    random = torch.Generator().manual_seed(int(digest(content_of(medium))[:15], 16))
    grid = rules.grid(medium)
    return torch.stack([torch.randint(size, grid, generator=random) for size in rules.books])


def without(rows: int, spans: Sequence[Span]) -> list[Span]:
    """Returns the ids below `rows` that are in none of the spans."""
    left, at = [], 0
    for start, stop in sorted(spans):
        if at < start:
            left.append((at, min(start, rows)))
        at = max(at, stop)
    return [*left, (at, rows)] if at < rows else left


def _times(grid: Sequence[int]) -> str:
    return ' x '.join(map(str, grid))
