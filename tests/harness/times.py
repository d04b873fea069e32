"""Where the time of a run went: the slowest tests, and the seconds of every folder, at its end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import pytest

SLOWEST, SHORTEST = 30, 0.05
"""How many tests are named, and how many seconds each of them takes at least."""


class Times:
    """A plugin that adds up what each test took, its fixtures included.

    Workers of xdist send their reports to the process that started them, so that one has the times of all.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.seconds:
            terminalreporter.section(f'the slowest {SLOWEST} tests, and the seconds of each folder')
            for line in summary(self.seconds):
                terminalreporter.write_line(line)


def summary(seconds: Mapping[str, float]) -> list[str]:
    """The slowest tests, then the sums by top folder of tests, both from the slowest on, and the sum of all."""
    folders: dict[str, float] = defaultdict(float)
    for name, taken in seconds.items():
        folders['/'.join(name.partition('::')[0].split('/')[:2])] += taken
    slowest = sorted((item for item in seconds.items() if item[1] >= SHORTEST), key=lambda item: -item[1])[:SLOWEST]
    sums = sorted(folders.items(), key=lambda item: -item[1])
    sums.append(('all workers together', sum(folders.values())))
    return (
        [f'{taken:8.1f} s  {name}' for name, taken in slowest]
        + ['']
        + [f'{taken:8.1f} s  {name}' for name, taken in sums]
    )
