"""Tables of Markdown, and values as they stand in settings."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table with a line for each row."""
    lines = [heads, ['---'] * len(heads), *rows]
    return ''.join(f'| {" | ".join(cell.replace("|", chr(92) + "|") for cell in line)} |\n' for line in lines)


def code(value: Any) -> str:
    """A value as a file of settings has it."""
    if isinstance(value, tuple):
        value = list(value)
    return f'`{"null" if value is None else value}`'


def listed(kinds: Collection[str]) -> str:
    """Text, and the kinds of media beside it."""
    return ', '.join(['text', *sorted(kinds)])
