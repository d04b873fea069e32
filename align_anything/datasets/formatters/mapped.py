"""What the templates with column mapping share: finding columns, media columns, the system column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from align_anything.core.errors import DataError, SampleError
from align_anything.core.registry import nearest
from align_anything.core.types import MEDIA_KINDS, MediaKind
from align_anything.datasets.formatters.base import BaseFormatter
from align_anything.datasets.formatters.columns import Row, as_text, column, filled, from_json, missing
from align_anything.datasets.formatters.turns import Turns, shown
from align_anything.datasets.turn_keys import listed


class MappedFormatter(BaseFormatter):
    """A template whose columns are options.

    An option that is null looks for its usual columns; `''` says that there is none.

    Attributes:
        system: column with the system prompt of the row.
        tools: column with the tools that answers may call, a list or its JSON text.
        images: column with the image or list of images, or several such columns with commas between them; by default
            `images` or `image`. Likewise videos, audios.
    """

    system: str | None = None
    tools: str | None = None
    images: str | None = None
    videos: str | None = None
    audios: str | None = None

    _systems: tuple[str, ...] = ('system',)

    def find(self, row: Row, option: str, usual: Sequence[str]) -> str | None:
        """Returns the column that `option` maps to, or the first of its `usual` columns the row has, or None.

        Raises `SampleError` when the option names a column that the row lacks.
        """
        mapped = getattr(self, option)
        if mapped is None:
            return next((name for name in usual if filled(row, name)), None)
        if mapped and mapped not in row:
            raise missing(row, [mapped])
        return mapped or None

    def require(self, row: Row, option: str, usual: Sequence[str]) -> str:
        """Returns the column that `option` maps to or the first usual one. Raises `SampleError` when there is none."""
        name = self.find(row, option, usual)
        if name is None:
            for null in (column for column in usual if column in row):
                raise SampleError(f"column '{null}' is null in this row.")
            raise SampleError(f"{missing(row, usual)} Map it with the template option '{option}'.")
        return name

    def media(self, row: Row) -> dict[str, Any]:
        """Returns the media of the row by kind. Raises `SampleError` when two columns claim to hold the same kind.

        A kind that has no column is present and empty: a placeholder without media is then an error and not text.
        """
        found, taken = {}, self.answer_columns(row)
        for kind in MEDIA_KINDS:
            option = f'{kind}s'
            mapped = getattr(self, option)
            if mapped == '':
                continue
            several = columns_of(row, mapped)
            if len(several) > 1:
                found[kind] = [source for name in several for source in listed(from_json(column(row, name)))]
                continue
            usual = [name for name in (option, kind) if name not in taken]
            both = [name for name in usual if filled(row, name)]
            if len(both) > 1 and mapped is None:
                raise SampleError(f"the row has columns '{option}' and '{kind}': choose one with option '{option}'.")
            name = self.find(row, option, usual)
            found[kind] = [] if name is None or row[name] is None else from_json(row[name])
        return found

    def answer_columns(self, row: Row) -> tuple[str, ...]:
        """Returns the columns whose media are answers, and not shown to be asked about."""
        return ()

    def beside(self, row: Row) -> dict[str, Any]:
        """Returns what goes into `meta` of any row: its media by kind, and its tools if it has any."""
        name = self.find(row, 'tools', ('tools',))
        tools = {'tools': row[name]} if name and row[name] not in (None, '', '[]', [], {}) else {}
        return {**self.media(row), **tools}

    def opening_of(self, row: Row, has_system_turn: bool) -> Turns:
        """Returns the system turn of the row, from its column or else the option `system_prompt`.

        Raises `SampleError` when the row has a system prompt in its column and another in its turns.
        """
        name = self.find(row, 'system', self._systems)
        prompt = as_text(row[name], f"column '{name}'") if name and row[name] is not None else ''
        if prompt and has_system_turn:
            raise SampleError(f"the row has a system turn and also column '{name}': set option system: ''.")
        if prompt:
            return [{'role': 'system', 'content': prompt}]
        return [] if has_system_turn else self.opening()


def columns_of(row: Row, mapped: str | None) -> list[str]:
    """Returns the columns that an option for media names: one that the row has, or several with commas between them."""
    if not mapped or mapped in row:
        return [mapped] if mapped else []
    return [name.strip() for name in mapped.split(',')]


class AnsweringFormatter(MappedFormatter):
    """A template with column mapping whose answers may be media.

    Attributes:
        answers: `image`, `audio` or `video` where the columns with answers hold such media and no text.
    """

    answers: str = ''

    # By option, the usual columns of the answers; `{}` stands for the kind of media that they are.
    _answer_columns: Mapping[str, tuple[str, ...]] = MappingProxyType({})

    def answer_kind(self) -> MediaKind | None:
        """Returns the kind of media that answers are, None for text. Raises `DataError` for an unknown kind."""
        if self.answers and self.answers not in MEDIA_KINDS:
            raise DataError(
                f"option 'answers' of template '{self.name}' is '{self.answers}'.{nearest(self.answers, MEDIA_KINDS)} "
                f"It is one of {', '.join(MEDIA_KINDS)}, or '' for answers in text."
            )
        return next((kind for kind in MEDIA_KINDS if kind == self.answers), None)

    def answer_columns(self, row: Row) -> tuple[str, ...]:
        if not self.answer_kind():
            return ()
        found = [getattr(self, option) or self._first(row, option) for option in self._answer_columns]
        return tuple(filter(None, found))

    def answer_column(self, row: Row, option: str) -> str:
        """Returns the column of the answers that `option` maps. Raises `SampleError` when there is none."""
        return self.require(row, option, self._usual(option))

    def prompt_columns(self, *usual: str) -> tuple[str, ...]:
        """Returns the usual columns of prompts, with those of texts that are made into media."""
        return (*usual, 'caption', 'text') if self.answer_kind() else usual

    def medium(self, value: Any, where: str) -> dict[str, Any]:
        """Returns the answer of one medium. Raises `SampleError` naming `where` when there is none, or several."""
        kind = self.answer_kind()
        parts = [] if value is None else shown(kind, from_json(value))
        if len(parts) != 1:
            raise SampleError(f'{where} should hold one {kind} but holds {len(parts) or "none"}.')
        return {'role': 'assistant', 'content': parts}

    def _usual(self, option: str) -> tuple[str, ...]:
        kind = self.answer_kind()
        return tuple(name.format(kind) for name in self._answer_columns[option] if kind or '{}' not in name)

    def _first(self, row: Row, option: str) -> str | None:
        return next((name for name in self._usual(option) if filled(row, name)), None)
