"""The files of AnyGPT, in which media are runs of tokens in the text (https://github.com/OpenMOSS/AnyGPT)."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from align_anything.core.errors import DataError, SampleError
from align_anything.core.registry import nearest
from align_anything.core.types import MediaKind
from align_anything.datasets.formatters.base import BaseFormatter, register_template
from align_anything.datasets.formatters.columns import Row, filled, items, missing, text
from align_anything.datasets.formatters.turns import Sample


@dataclass(frozen=True)
class Notation:
    """How one sort of media is written in a text.

    Attributes:
        kind: what it is.
        name: its part of the marks, as in `<soim>` and `<eoim>`.
        sign: what stands before each number; a variation selector may follow it.
        books: how many code books take turns.
        entries: numbers in each of them, those of the second begin where the first one's end.
    """

    kind: MediaKind
    name: str
    sign: str
    books: int
    entries: int


NOTATIONS = MappingProxyType(
    {
        'image': Notation('image', 'im', '\N{EYES}', 1, 8192),
        'speech': Notation('audio', 'sp', '\N{SPEAKING HEAD IN SILHOUETTE}', 1, 1024),
        'music': Notation('audio', 'mu', '\N{MULTIPLE MUSICAL NOTES}', 4, 2048),
        'audio': Notation('audio', 'au', '\N{EAR}', 4, 1024),
    }
)
"""By the column that holds it. Images are 32 codes that stand in no grid, a single row here."""
BY_NAME = MappingProxyType({notation.name: notation for notation in NOTATIONS.values()})
MARKED = re.compile('<so(im|sp|mu|au)>(.*?)<eo\\1>', re.DOTALL)
LEFT_OVER = re.compile('<[se]o(?:im|sp|mu|au)>')


def coded_parts(said: str) -> list[dict[str, Any]]:
    """Returns a text as parts, with the codes of the media that are written in it.

    Raises `SampleError` for a medium without its end, and for codes that are none of its sort.
    """
    parts: list[dict[str, Any]] = []
    start = 0
    for match in MARKED.finditer(said):
        parts += _text(said[start : match.start()])
        notation = BY_NAME[match[1]]
        parts.append({'type': notation.kind, notation.kind: {'codes': _codes(notation, match[2])}})
        start = match.end()
    return [*parts, *_text(said[start:])]


def _text(said: str) -> list[dict[str, Any]]:
    alone = LEFT_OVER.search(said)
    if alone:
        raise SampleError(f"the text holds '{alone[0]}' without its other end: '{said[:60]}'.")
    return [{'type': 'text', 'text': said}] if said.strip() else []


def _codes(notation: Notation, tokens: str) -> list[Any]:
    """Returns the codes that a run of tokens writes, `(books, 1, codes)` of an image, else `(books, frames)`."""
    sign = f'{notation.sign}\ufe0f?'
    if not re.fullmatch(f'(?:\\s*<{sign}[0-9]+>)+\\s*', tokens):
        raise SampleError(f"'<so{notation.name}>{tokens[:40]}…' should hold codes like '<{notation.sign}12>' only.")
    numbers = [int(number) for number in re.findall(f'<{sign}([0-9]+)>', tokens)]
    if len(numbers) % notation.books:
        raise SampleError(f'<so{notation.name}> has {len(numbers)} codes, which {notation.books} books do not share.')
    places = [divmod(number, notation.entries) for number in numbers]
    wrong = next((at for at, (book, _) in enumerate(places) if book != at % notation.books), None)
    if wrong is not None:
        raise SampleError(
            f'code {numbers[wrong]} of <so{notation.name}> is not from book {wrong % notation.books} of '
            f'{notation.books} with {notation.entries} entries each.'
        )
    books = [[code for _, code in places[book :: notation.books]] for book in range(notation.books)]
    return [[row] for row in books] if notation.kind == 'image' else books


@register_template('AnyGPT_Conv')
class AnyGPTConv(BaseFormatter):
    """Column `conversation`: a list of turns `{'role', 'message'}`, or a list that holds one such list."""

    def format_supervised_sample(self, raw_sample: Row) -> Sample:
        turns = items(raw_sample, 'conversation')
        if turns and isinstance(turns[0], (list, tuple)):
            if len(turns) > 1:
                raise SampleError(
                    f"column 'conversation' holds {len(turns)} conversations: give each a row of its own."
                )
            turns = list(turns[0])
        return [*self.opening(), *(self._turn(index, turn) for index, turn in enumerate(turns))], {}

    def _turn(self, index: int, turn: Any) -> dict[str, Any]:
        if not isinstance(turn, Mapping):
            raise SampleError(f'turn {index} should be a record but is {type(turn).__name__}.')
        return {'role': text(turn, 'role'), 'content': coded_parts(text(turn, 'message'))}


DIRECTIONS = ('to_media', 'to_text', 'both')


@register_template('AnyGPT_Pair')
class AnyGPTPair(BaseFormatter):
    """Columns `text` and one of `image`, `speech`, `music`, `audio`, which hold runs of tokens.

    Attributes:
        direction: `to_media` answers the text with the medium, `to_text` the medium with the text; with `both` each row
            has one of them, always the same.
        request: what is put before the text that is answered with a medium.
        question: what is asked about the medium that is answered with a text.
    """

    direction: str = 'to_media'
    request: str = ''
    question: str = 'Put this into words.'

    def format_supervised_sample(self, raw_sample: Row) -> Sample:
        said = text(raw_sample, 'text')
        held = [name for name in NOTATIONS if filled(raw_sample, name)]
        if not held:
            raise missing(raw_sample, list(NOTATIONS))
        if len(held) > 1:
            raise SampleError(f'the row has several media: {", ".join(held)}.')
        medium = coded_parts(text(raw_sample, held[0]))
        if [part['type'] for part in medium] != [NOTATIONS[held[0]].kind]:
            raise SampleError(f"column '{held[0]}' should hold one run of tokens and nothing else.")
        if self._to_media(said):
            turns = [('user', [{'type': 'text', 'text': self.request + said}]), ('assistant', medium)]
        else:
            turns = [('user', [*medium, {'type': 'text', 'text': self.question}]), ('assistant', said)]
        return [*self.opening(), *({'role': role, 'content': content} for role, content in turns)], {}

    def _to_media(self, said: str) -> bool:
        if self.direction not in DIRECTIONS:
            raise DataError(
                f"option 'direction' of template '{self.name}' is '{self.direction}'."
                f'{nearest(self.direction, DIRECTIONS)} It is one of {", ".join(DIRECTIONS)}.'
            )
        # Chosen by the row, not at random: a resumed run and every worker must take the same.
        return zlib.crc32(said.encode()) % 2 == 0 if self.direction == 'both' else self.direction == 'to_media'
