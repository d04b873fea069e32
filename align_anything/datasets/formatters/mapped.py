"""What the templates with column mapping share: finding columns, media columns, the system column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from align_anything.core.errors import SampleError
from align_anything.core.types import MEDIA_KINDS
from align_anything.datasets.formatters.base import BaseFormatter
from align_anything.datasets.formatters.columns import Row, as_text, filled, from_json, missing
from align_anything.datasets.formatters.turns import Turns


class MappedFormatter(BaseFormatter):
    """A template whose columns are options.

    An option that is null looks for its usual columns; `''` says that there is none.

    Attributes:
        system: column with the system prompt of the row.
        tools: column with the tools that answers may call, a list or its JSON text.
        images: column with the image or list of images; by default `images` or `image`. Likewise videos, audios.
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
        found = {}
        for kind in MEDIA_KINDS:
            option = f'{kind}s'
            if getattr(self, option) == '':
                continue
            both = [name for name in (option, kind) if filled(row, name)]
            if len(both) > 1 and getattr(self, option) is None:
                raise SampleError(f"the row has columns '{option}' and '{kind}': choose one with option '{option}'.")
            name = self.find(row, option, (option, kind))
            found[kind] = [] if name is None or row[name] is None else from_json(row[name])
        return found

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
