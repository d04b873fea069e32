"""What a conversation shows: text as it comes, media as files and where the terminal can as pictures."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from align_anything.core.errors import SampleError
from align_anything.core.files import atomic_write_bytes
from align_anything.core.types import ACTION, MediaKind, decoded_medium, words_of
from align_anything.datasets.media.writing import files_of

BROKEN = '\ufffd'
UNDECODED = ' of codes that no codec decodes'


class Screen:
    """Writes a conversation to a stream.

    Args:
        out: the stream.
        folder: where media are written.
        show: makes the sequences that show an image on the terminal; None where it shows none.
    """

    def __init__(self, out: TextIO, folder: Path, show: Callable[[Any], str] | None = None) -> None:
        self.out, self._folder, self._show = out, folder, show
        self._begun = False

    def say(self, text: str, end: str = '\n') -> None:
        """Writes text of this program."""
        self.out.write(text + end)
        self.out.flush()
        self._begun = not (text + end).endswith('\n')

    def end_line(self) -> None:
        """Begins a new line, unless one is begun."""
        if self._begun:
            self.say('')

    def part(self, part: dict[str, Any]) -> str:
        """Shows a part of an answer; returns the path of a medium, an empty text for words and actions."""
        kind = part['type']
        if kind == 'text':
            self.say(shown(part['text']), end='')
            return ''
        if kind == ACTION:
            self.end_line()
            self.say(shown(words_of([part])))
            return ''
        medium = decoded_medium(part)
        if medium is None:
            self.say(f'[{kind}{UNDECODED}]')
            return ''
        path = self.write(kind, medium)
        self.end_line()
        self.say(f'[{kind}: {path}]')
        self.picture('', part)
        return str(path)

    def picture(self, title: str, part: dict[str, Any]) -> None:
        """Shows an image where the terminal can, under a title if it has one; nothing of other parts."""
        if part['type'] == 'image' and self._show is not None:
            self.say(f'{title}\n' * bool(title) + self._show(part['image']))

    def write(self, kind: MediaKind, medium: Any) -> Path:
        """Writes a medium to a file of its own, and returns its path."""
        return write_medium(self._folder, kind, medium)

    @contextmanager
    def columns(self, names: Sequence[str]) -> Iterator[Callable[[Sequence[str]], None]]:
        """Shows texts side by side under `names`, on a terminal as they grow. Yields what updates them."""
        from rich.console import Console
        from rich.live import Live
        from rich.table import Table
        from rich.text import Text

        def table(texts: Sequence[str]) -> Table:
            made = Table(expand=True)
            for name in names:
                made.add_column(Text(name))
            made.add_row(*[Text(shown(text)) for text in texts])
            return made

        console = Console(file=self.out, highlight=False)
        with Live(table(['' for _ in names]), console=console, refresh_per_second=8) as live:
            yield lambda texts: live.update(table(texts))
        if not console.is_terminal:
            self.say('')


def write_medium(folder: Path, kind: MediaKind, medium: Any) -> Path:
    """Writes a medium to a file of its own in a folder, and returns its path. Raises SampleError where it cannot."""
    files = files_of(kind, medium)
    # Players show what was encoded for them; of other kinds there is one file.
    suffix, content = next((file for file in files if file[0] == '.mp4'), files[0])
    number = 1
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while (path := folder / f'{kind}_{number:04d}{suffix}').exists():
            number += 1
        atomic_write_bytes(path, content)
    except OSError as error:
        raise SampleError(f'the {kind} cannot be written to {folder}: {error.strerror}.') from error
    return path


def shown(text: str) -> str:
    """Returns the text of a model without what would make a terminal do things."""
    return ''.join(letter if letter.isprintable() or letter in '\n\t' else BROKEN for letter in text)


def terminal_graphics() -> Callable[[Any], str] | None:
    """Returns what shows images on the terminal of this process; None where there is none, or it shows none."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or os.environ.get('TERM') in (None, 'dumb'):
        return None
    from align_anything.serve.chat.graphics import graphics_of

    return graphics_of(sys.stdin.fileno(), sys.stdout.fileno())
