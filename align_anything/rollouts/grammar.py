"""What a model that writes media may sample next: codes stand where a medium of their kind is open, and nowhere else.

A pure state machine over the ids of a response. It knows neither tensors nor models, and goes to other processes as
JSON.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from align_anything.core.types import MediaKind
from align_anything.models.codes import TEXT, KindOfCodes, MediaCodes, Span, without

ENDLESS = 2**31
"""Where spans end that reach to the end of the vocabulary, however many ids it has."""
Spans = tuple[Span, ...]
EVERYTHING: Spans = ((0, ENDLESS),)
Grid = tuple[int, ...]


@dataclass(frozen=True)
class Emission:
    """What media a response may hold.

    Attributes:
        grids: the kinds that may be written, each with the grid of its codes: None for the one grid that all media of
            the kind have, or for audio that ends where the model ends it.
        begins: the kind that a response begins with at once, and ends right behind; None lets the model begin with
            text and open media when it likes.
    """

    grids: Mapping[MediaKind, Grid | None] = field(default_factory=dict)
    begins: MediaKind | None = None

    def grid(self, own: KindOfCodes) -> Grid | None:
        """Returns the grid of the media of a kind; None where the model decides how long they get."""
        return self.grids[own.kind] or own.size

    def shortest(self, own: KindOfCodes) -> int:
        """Returns how many tokens a medium of a kind takes at least."""
        grid = self.grid(own)
        return own.length((1,) if grid is None else grid)


@dataclass(frozen=True)
class SpanRules:
    """How a medium is written: opening, codes, closing.

    Attributes:
        opening, closing: ids before and behind the codes, all but the first of which are forced.
        books: the ids of each code book; a position has one code of each in turn.
        number: number of the set of the first book, as `MediaCodes.sets` counts; those of the others follow it.
        codes: how many codes there are, 0 where the model closes the medium.
        limit: number of codes after which a medium is closed that the model did not close, 0 for none.
        row: codes before each `row_end`, 0 where there are none.
        row_end: the id behind each row.
    """

    opening: tuple[int, ...]
    closing: tuple[int, ...]
    books: Spans
    number: int
    codes: int = 0
    limit: int = 0
    row: int = 0
    row_end: int = -1

    @property
    def length(self) -> int:
        """How many ids a medium has whose number of codes is known."""
        ends = self.codes // self.row if self.row else 0
        return len(self.opening) + self.codes + ends + len(self.closing)


@dataclass(frozen=True)
class Grammar:
    """What a response may hold, and from which sets its units are sampled.

    Attributes:
        kinds: how each medium is written that may be, in the order of `MediaCodes.kinds`.
        sets: the ids that each unit is normalised over, by the number of its set: text, then each book of each kind.
            All ids where the policy's scores are such (`MediaCodes.ranged`).
        text: what may be sampled outside of media: openings of the `kinds` among it.
        begins: number of the medium among `kinds` that a response consists of; None for text.
        stops: the ids that end a response.
        end: the one that is forced behind the medium that a response consists of.
    """

    kinds: tuple[SpanRules, ...]
    sets: tuple[Spans, ...]
    text: Spans
    begins: int | None
    stops: tuple[int, ...]
    end: int

    @classmethod
    def of(
        cls,
        codes: MediaCodes,
        emission: Emission | None,
        stops: Sequence[int],
        end: int,
        banned: Iterable[int] = (),
    ) -> Grammar:
        """Returns the grammar of a family's codes.

        Args:
            emission: what may be written; None for text alone.
            stops: ids that end a response.
            end: the one among them that ends the answers that are trained.
            banned: ids that are never sampled in text, such as placeholders.
        """
        emission = emission or Emission()
        rules, begins, number = [], None, TEXT + 1
        for own in codes.kinds.values():
            if own.kind in emission.grids:
                begins = len(rules) if own.kind == emission.begins else begins
                rules.append(_rules(own, emission, number))
            number += len(own.books)
        sets = tuple(tuple(spans) if codes.ranged else EVERYTHING for spans in codes.sets(ENDLESS))
        opened = {rule.opening[0] for rule in rules if rule.opening}
        shut = {*banned, *_marks(codes)}
        # The score of an id that ends a medium where it likes is one among codes: in a text it would be another.
        open_ended = {own.closing[0] for own in codes.kinds.values() if own.open_ended and own.closing}
        ends = {*stops} - open_ended or {*stops}
        shut -= opened | ends
        books = [span for own in codes.kinds.values() for span in own.spans]
        text = without(ENDLESS, [*books, *((token, token + 1) for token in shut)])
        return cls(tuple(rules), sets, tuple(text), begins, tuple(stops), end)

    def start(self) -> State:
        """Returns the state before the first id of a response."""
        return State(self)

    def after(self, ids: Iterable[int]) -> State:
        """Returns the state behind these ids. Raises ValueError for an id that was not allowed."""
        state = self.start()
        for token in ids:
            state.advance(token)
        return state

    def chosen(self, ids: Iterable[int]) -> list[bool]:
        """Returns of each id of a response whether another one might have stood there. Raises as `after` does."""
        state, chosen = self.start(), []
        for token in ids:
            chosen.append(state.free)
            state.advance(token)
        return chosen

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Grammar:
        """Returns what `to_json` wrote, whether or not its tuples came back as lists."""
        kinds = [SpanRules(**{name: _frozen(value) for name, value in rule.items()}) for rule in values['kinds']]
        rest = {name: _frozen(value) for name, value in values.items() if name != 'kinds'}
        return cls(kinds=tuple(kinds), **rest)


class State:
    """Where in a response one is.

    Attributes:
        allowed: the ids that may come next, as spans: what masks can be kept by.
        number: of the set that the next id is sampled from, as `Grammar.sets` has them.
    """

    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar
        self._ended = False
        # The medium that is open, how many ids of it there are, and where its closing began if that is known.
        self._open: SpanRules | None = None if grammar.begins is None else grammar.kinds[grammar.begins]
        self._at, self._closes = 0, self._closing_of(self._open)
        # Whether only the end is left.
        self._done = False
        self.allowed: Spans = ()
        self.number = TEXT
        self._settle()

    @property
    def free(self) -> bool:
        """Whether more than one id may come next."""
        return sum(stop - start for start, stop in self.allowed) > 1

    def advance(self, token: int) -> None:
        """Takes the next id. Raises ValueError where it was not allowed."""
        if not any(start <= token < stop for start, stop in self.allowed):
            raise ValueError(f'id {token} may not come here, where {self.allowed} may')
        rules = self._open
        if token in self._grammar.stops:
            self._ended = True
        elif rules is None:
            opened = (own for own in self._grammar.kinds if own.opening and own.opening[0] == token)
            self._open = next(opened, None)
            self._at, self._closes = 1, self._closing_of(self._open)
        else:
            if self._closes is None and token == rules.closing[0]:
                self._closes = self._at
            self._at += 1
            if rules.limit and self._at == len(rules.opening) + rules.limit:
                self._closes = self._closes or self._at
        self._settle()

    def _closing_of(self, rules: SpanRules | None) -> int | None:
        return rules.length - len(rules.closing) if rules is not None and rules.codes else None

    def _settle(self) -> None:
        """Finds what may come next."""
        rules, self.number = self._open, TEXT
        if rules is not None and self._closes is not None and self._at == self._closes + len(rules.closing):
            self._open = rules = None
            self._done = self._grammar.begins is not None
        if self._ended:
            self.allowed = EVERYTHING
        elif self._done:
            self.allowed = _only(self._grammar.end)
        elif rules is None:
            self.allowed = self._grammar.text
        elif self._at < len(rules.opening):
            self.allowed = _only(rules.opening[self._at])
        elif self._closes is not None and self._at >= self._closes:
            self.allowed = _only(rules.closing[self._at - self._closes])
        else:
            self.allowed = self._codes(rules, self._at - len(rules.opening))

    def _codes(self, rules: SpanRules, at: int) -> Spans:
        """What may stand at a position among the codes, their row ends counted."""
        if rules.row:
            at %= rules.row + 1
            if at == rules.row:
                return _only(rules.row_end)
        book = at % len(rules.books)
        self.number = rules.number + book
        # A medium ends behind a whole frame, and has one.
        ends = _only(rules.closing[0]) if not rules.codes and book == 0 and at > 0 else ()
        return (rules.books[book], *ends)


def _marks(codes: MediaCodes) -> Iterator[int]:
    """The ids that tell where media begin, go on and end, which say nothing in a text."""
    for own in codes.kinds.values():
        yield from (*own.opening[:1], *own.closing[:1], *(() if own.row_end is None else (own.row_end,)))


def _rules(own: KindOfCodes, emission: Emission, number: int) -> SpanRules:
    grid, books = emission.grid(own), tuple(own.spans)
    if grid is None:
        limit = (own.longest or 0) // len(books) * len(books)
        return SpanRules(own.opening, own.closing, books, number, limit=limit)
    row = 0 if own.row_end is None else grid[-1] * len(books)
    codes = math.prod(grid) * len(books)
    end = -1 if own.row_end is None else own.row_end
    return SpanRules(own.opening_of(grid), own.closing, books, number, codes, row=row, row_end=end)


def _only(token: int) -> Spans:
    return ((token, token + 1),)


def _frozen(value: Any) -> Any:
    """Lists as tuples, however deep."""
    return tuple(map(_frozen, value)) if type(value) in (list, tuple) else value
