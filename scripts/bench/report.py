"""Targets as ratios, and how they are shown."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Ratio:
    """One target.

    Attributes:
        name: what is compared with what.
        value: the measured ratio; `limit` is what it has to reach, from below or (`at_most`) from above.
        detail: the two figures that the ratio is made of.
    """

    name: str
    value: float
    limit: float
    at_most: bool = False
    detail: str = ''

    @property
    def passed(self) -> bool:
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    def record(self) -> dict[str, object]:
        """Returns the fields and the verdict, for JSON."""
        return {**asdict(self), 'passed': self.passed}


def show(ratio: Ratio) -> None:
    """Prints a line `PASS  1.92 (at least 1.70)  name: detail`."""
    verdict = 'PASS' if ratio.passed else 'FAIL'
    bound = 'at most' if ratio.at_most else 'at least'
    say(f'{verdict}  {ratio.value:6.3f} ({bound} {ratio.limit:g})  {ratio.name}: {ratio.detail}')


def say(text: str) -> None:
    """Writes a line to standard output at once."""
    sys.stdout.write(text + '\n')
    sys.stdout.flush()
