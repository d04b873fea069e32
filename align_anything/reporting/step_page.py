"""A page that grows by a section after some of the steps of a run, in one file that needs no other and runs nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from align_anything.core.files import atomic_write_text

PAGE_BYTES = 32 * 2**20
"""Size from which a browser gets slow: a page that reaches it is put aside under a number, and a new one begins."""
_SECTION = re.compile(r'<details class="[a-z]+" style="--step:(\d+)"')


class StepPage:
    """Appends each section as one line, sorted by the styles at the top of the page.

    Nothing is written again, so a long run does not spend its time on the page, and one that goes on drops the lines
    past the step that it goes on from.

    Args:
        path: of the page.
        resume_step: step that the run goes on from; None starts afresh, and older pages are kept as `*.old`.
        top: what a page begins with, given the names of the earlier pages.
    """

    def __init__(self, path: Path, resume_step: int | None, top: Callable[[str], str]) -> None:
        self._path, self._top = path, top
        for page in (*self._earlier(), self._path):
            if resume_step is None and page.exists():
                page.replace(page.with_name(f'{page.name}.old'))
            elif page.exists():
                text = page.read_text(encoding='utf-8')
                kept = _up_to(resume_step, text)
                if kept != text:
                    atomic_write_text(page, kept)

    def append(self, section: str) -> None:
        """Appends a section, a `details` of one class that says its step in its style."""
        if not self._path.exists():
            self._begin()
        elif self._path.stat().st_size > PAGE_BYTES:
            number = len(self._earlier()) + 1
            self._path.replace(self._path.with_stem(f'{self._path.stem}.{number}'))
            self._begin()
        with open(self._path, 'a', encoding='utf-8') as file:
            file.write(section.replace('\r', '&#13;').replace('\n', '&#10;') + '\n')

    def _begin(self) -> None:
        earlier = ', '.join(page.name for page in self._earlier())
        atomic_write_text(self._path, self._top(earlier) + '\n')

    def _earlier(self) -> list[Path]:
        pages = self._path.parent.glob(f'{self._path.stem}.*{self._path.suffix}')
        numbered = [page for page in pages if page.stem.removeprefix(f'{self._path.stem}.').isdecimal()]
        return sorted(numbered, key=lambda page: int(page.stem.rpartition('.')[2]))


def _up_to(step: int, text: str) -> str:
    """A page without the sections past a step, and without a last line that a kill tore."""
    lines = text.split('\n')[:-1]
    sections = [_SECTION.match(line) for line in lines]
    kept = [line for line, section in zip(lines, sections, strict=True) if not section or int(section[1]) <= step]
    return ''.join(f'{line}\n' for line in kept)
