"""Where the time of a few steps goes: a trace for a viewer, and a table."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from align_anything.core.distributed import is_main, rank
from align_anything.core.files import atomic_write_text
from align_anything.core.logging import get_logger

logger = get_logger(__name__)

FOLDER = 'profile'
TABLE = 'steps.txt'
PHASES = ('data', 'sync', 'generation', 'reward', 'scoring', 'update', 'forward', 'backward', 'optimizer')
"""Names of the ranges that loops and engines mark; an update holds the last three."""
LISTED = 20


class StepProfile:
    """Records `steps` steps after the first, which pays for kernels and buffers, and writes what it found.

    Every rank writes a trace of its own, `profile/rank<number>.json.gz`, which chrome://tracing and Perfetto open; the
    main one the table `profile/steps.txt` too.
    """

    def __init__(self, output_dir: Path, steps: int) -> None:
        self._folder, self._steps = output_dir / FOLDER, steps
        self._done = -1
        self._profile: Any = None

    def stepped(self) -> None:
        """Says that a step is done."""
        self._done += 1
        if self._done == 0:
            on_device = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            self._profile = profile(activities=[ProfilerActivity.CPU, *on_device])
            self._profile.start()
        elif self._done == self._steps:
            self.close()

    def close(self) -> None:
        """Ends the recording, if it is under way. May be called twice."""
        recorded, self._profile = self._profile, None
        if recorded is None:
            return
        recorded.stop()
        if self._done == 0:
            logger.warning('profile: the run ended after its first step, which is not recorded')
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        recorded.export_chrome_trace(str(self._folder / f'rank{rank()}.json.gz'))
        if is_main():
            atomic_write_text(self._folder / TABLE, table(recorded.key_averages(), self._done))
            logger.info('profile of %d steps: %s', self._done, self._folder)


def table(events: Iterable[Any], steps: int) -> str:
    """Returns the milliseconds of a step in each marked phase, and in the operators that take longest themselves."""
    events = list(events)
    on_device = any(event.self_device_time_total for event in events)
    header = f'{"milliseconds of a step":<60}{"host":>12}{"device":>12}{"calls":>10}'
    found = {event.key: event for event in events if event.key in PHASES}
    phases = [_line(found[name], steps, event_total=True) for name in PHASES if name in found]

    def own(event: Any) -> float:
        return event.self_device_time_total if on_device else event.self_cpu_time_total

    rest = sorted((event for event in events if event.key not in PHASES), key=own, reverse=True)
    longest = [_line(event, steps, event_total=False) for event in rest[:LISTED] if own(event)]
    told = f'The longest of {len(rest)} operators, without those that they call:'
    return '\n'.join([header, *phases, '', told, *longest]) + '\n'


def _line(event: Any, steps: int, event_total: bool) -> str:
    host = event.cpu_time_total if event_total else event.self_cpu_time_total
    device = event.device_time_total if event_total else event.self_device_time_total
    return f'{event.key[:58]:<60}{host / 1e3 / steps:>12.2f}{device / 1e3 / steps:>12.2f}{event.count / steps:>10.1f}'
