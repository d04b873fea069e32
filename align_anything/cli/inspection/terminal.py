"""The survey of a run's data in the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from align_anything.cli.inspection.figures import Bin, Share, histograms, stops, summary
from align_anything.cli.inspection.rows import SetSurvey, Survey
from align_anything.trainers.runs.dry_run import marks_of, show_example

SAMPLES = 3
REASONS = 10
BAR = 40


def print_survey(survey: Survey, report: Path, console: Console | None = None) -> None:
    """Prints numbers, histograms, what is skipped, some samples, and where the report is."""
    console = console or Console(highlight=False)
    for found in survey.sets:
        _print_set(console, survey, found)
    console.print(Text(f'\nreport: {report}'), soft_wrap=True)


def _print_set(console: Console, survey: Survey, found: SetSurvey) -> None:
    numbers = Table(title=f'{survey.run}, {found.name} data', show_header=False)
    for name, value in summary(survey, found).items():
        numbers.add_row(Text(name), Text(value))
    console.print(numbers)
    for title, bins in histograms(survey, found).items():
        console.print(_chart(title, bins))
    if found.skipped:
        table = Table('rows', 'reason', 'for instance', title='Skipped')
        for reason, records in found.reasons()[:REASONS]:
            table.add_row(str(len(records)), Text(_printable(reason)), Text(_printable(records[0].source)))
        console.print(table)
    warning = stops(survey, found)
    if warning:
        console.print(Text(warning, style='bold red'))
    for number, sample in enumerate(found.samples[:SAMPLES], 1):
        console.rule(Text(f'sample {number}: {_printable(sample.example.source)}'))
        console.print(show_example(sample.example, survey.spec), soft_wrap=True)
    if found.samples:
        console.print(f'\n{marks_of(survey.spec)}')


def _chart(title: str, bins: Sequence[Bin | Share]) -> Table:
    table = Table(title=title, show_header=False, box=None)
    most = max((item.rows for item in bins), default=1)
    for item in bins:
        table.add_row(
            Text(_printable(item.label)), Text('█' * math.ceil(BAR * item.rows / most), style='blue'), str(item.rows)
        )
    return table


def _printable(text: str) -> str:
    return text.encode('utf-8', 'replace').decode('utf-8')
