"""Paths that the page may name: those inside of one folder, after symlinks are followed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from align_anything.core.errors import SettingsError

LOCAL_ADDRESS = re.compile(r'\A(?:file|local)://', re.IGNORECASE)
MEMBER = re.compile(r'(?<=\.py):[^:/]*\Z')


class Root:
    """The folder of a page.

    Args:
        folder: it.

    Raises SettingsError where it is no folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser().resolve()
        if not self.folder.is_dir():
            raise SettingsError([f'--root: {folder} is no folder.'])

    def inside(self, text: str | Path, what: str) -> Path:
        """Returns a path, relative ones taken from the folder. Raises SettingsError where it leads out of it."""
        problem = self.problem_with(str(text))
        if problem:
            raise SettingsError([f'{what}: {problem}'])
        return (self.folder / Path(text).expanduser()).resolve()

    def short(self, path: Path) -> str:
        """Returns how a path inside is written on the page: relative to the folder."""
        return path.relative_to(self.folder).as_posix()

    def problem_with(self, text: str) -> str:
        """Says why a value names what the page may not touch; an empty text where it does not, or is no path at all."""
        for piece in text.split('::'):
            plain = MEMBER.sub('', LOCAL_ADDRESS.sub('', piece))
            try:
                place = (self.folder / Path(plain).expanduser()).resolve()
            except (ValueError, RuntimeError):
                return f'{text!r} is no path.'
            if not place.is_relative_to(self.folder):
                return (
                    f'{text} lies outside of {self.folder}, the folder of this page. Name what is inside, or start the '
                    'page with another --root.'
                )
        return ''

    def problems(self, settings: Mapping[str, Any]) -> list[str]:
        """Returns what is wrong with the texts in settings, by `group.key`; they may stand in lists and mappings."""
        found = [(path, self.problem_with(text)) for path, value in settings.items() for text in _texts(value)]
        return [f'{path}: {problem}' for path, problem in found if problem]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)
