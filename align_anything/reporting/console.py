"""What a person sees while a run goes: a progress bar on a terminal, a plain line per report elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.table import Column, Table

from align_anything.core.distributed import is_main
from align_anything.core.logging import get_logger

logger = get_logger(__name__)

REFRESH_SECONDS = 0.1
LINE_SECONDS = 30.0


def format_duration(seconds: float) -> str:
    """Returns `4:05` or `1:02:03`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02d}:{rest:02d}' if hours else f'{minutes}:{rest:02d}'


def format_values(values: Mapping[str, float]) -> str:
    """Returns `loss 1.2340 · lr 1.0e-05 · 1,234 tokens/s · padding 3.1% · peak 1.2 GiB`, in the order given.

    `padding` is a fraction and `peak_memory` is in bytes; names that are not known are shown as they are.
    """
    formats = {
        'learning_rate': lambda value: f'lr {value:.1e}',
        'tokens_per_second': lambda value: f'{value:,.0f} tokens/s',
        'samples_per_second': lambda value: f'{value:,.2f} samples/s',
        'mfu': lambda value: f'MFU {value:.1%}',
        'padding': lambda value: f'padding {value:.1%}',
        'peak_memory': lambda value: f'peak {value / 2**30:.1f} GiB',
    }
    known = {name: formats.get(name, lambda value, name=name: f'{name} {value:.4f}') for name in values}
    return ' · '.join(known[name](value) for name, value in values.items())


class TrainingConsole:
    """Progress over the optimizer steps of one run. Ranks other than 0 show nothing.

    `advance` is cheap and needs no numbers, so it may follow every step; `report` comes with the numbers of a
    logging interval. Give `console` to choose where the bar is drawn (standard error by default).
    """

    name = 'step'

    def __init__(self, total_steps: int, start_step: int = 0, console: Console | None = None) -> None:
        self._total = total_steps
        self._first = start_step
        self._step = start_step
        self._started = time.monotonic()
        self._refreshed = 0.0
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._console = console or Console(stderr=True)
        if is_main() and self._console.is_terminal:
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn('{task.description}', table_column=Column(no_wrap=True)),
                BarColumn(bar_width=12),
                MofNCompleteColumn(table_column=Column(no_wrap=True)),
                TextColumn('{task.fields[left]}', table_column=Column(no_wrap=True)),
                # Alone in giving way: whatever the width, it is seen how far the run is.
                TextColumn('{task.fields[numbers]}', table_column=Column(no_wrap=True, ratio=1)),
                console=self._console,
                expand=True,
                # Drawn from here, not from a thread that a forked data worker would inherit half-way.
                auto_refresh=False,
            )
            self._task = self._bar.add_task(self.name, total=total_steps, completed=start_step, left='', numbers='')
            self._bar.start()

    def advance(self, step: int) -> None:
        """Says that optimizer step `step` is done."""
        self._step = step
        if self._bar is None:
            return
        self._bar.update(self._task, completed=step, left=self._left())
        if time.monotonic() - self._refreshed > REFRESH_SECONDS or step >= self._total:
            self._refreshed = time.monotonic()
            self._bar.refresh()

    def report(self, step: int, values: Mapping[str, float]) -> None:
        """Shows the numbers of step `step`: in the bar, or as a line of the log."""
        self._step = step
        if self._bar is not None:
            self._bar.update(self._task, completed=step, left=self._left(), numbers=format_values(values))
            self._bar.refresh()
        elif is_main():
            told = filter(None, (self._left(), format_values(values)))
            logger.info('%s %d/%d · %s', self.name, step, self._total, ' · '.join(told))

    def note(self, text: str) -> None:
        """Writes a line that stays, above the bar: a checkpoint, an evaluation."""
        logger.info(text)

    def show(self, table: Table) -> None:
        """Prints a table that stays, above the bar."""
        if is_main():
            self._console.print(table)

    def close(self) -> None:
        """Leaves the terminal as it was. May be called twice."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _left(self) -> str:
        done = self._step - self._first
        if not done:
            return 'eta ?'
        seconds = (time.monotonic() - self._started) / done * (self._total - self._step)
        return f'eta {format_duration(seconds)}'


class StageConsole(TrainingConsole):
    """Progress over the batches of a stage before training: a bar with its name, elsewhere a line now and then."""

    def __init__(self, name: str, total: int, console: Console | None = None) -> None:
        self.name = name
        super().__init__(total, console=console)
        self._refreshed = self._started

    def advance(self, step: int) -> None:
        """Says that `step` batches are done."""
        super().advance(step)
        if self._bar is None and time.monotonic() - self._refreshed > LINE_SECONDS:
            self._refreshed = time.monotonic()
            self.report(step, {})
