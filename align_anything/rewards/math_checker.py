"""Comparison of mathematical answers, in a process of its own.

Simplifying what a model wrote can take for ever or all memory (`9^{9^{9^9}}`). The timeouts of math-verify are signals,
which only the main thread may set and which do not interrupt arithmetic on huge numbers. A process can be ended.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

WORKER = 'align_anything.rewards.math_worker'
ROOT = Path(__file__).parents[2]


class MathChecker:
    """One process that compares answers, started at the first comparison and again after it was ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def equal(self, golden: str, answer: str, seconds: float) -> bool | None:
        """Returns whether the answer that a text comes to is the golden one; None for another one than a sentence.

        An answer that cannot be compared within `seconds` of computing, or within 1 GiB of memory, is not the same.
        Raises `RuntimeError` when the process cannot be started.
        """
        with self._lock:
            if self._process is None:
                self._process = _started()
            try:
                self._process.stdin.write(json.dumps([golden, answer, seconds]) + '\n')
                self._process.stdin.flush()
                reply = self._process.stdout.readline()
            except BrokenPipeError:
                reply = ''
            if reply:
                return json.loads(reply)
            self._process.communicate()
            self._process = None
            return False


@functools.cache
def _checker_of(process: int) -> MathChecker:
    return MathChecker()


def math_checker() -> MathChecker:
    """Returns the checker of this process: a forked one must not write into the pipes of its parent."""
    return _checker_of(os.getpid())


def _started() -> subprocess.Popen[str]:
    # The package is found again where it was found here.
    paths = [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
    process = subprocess.Popen(
        [sys.executable, '-P', '-m', WORKER],
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(paths)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding='utf-8',
    )
    if not process.stdout.readline():
        process.communicate()
        raise RuntimeError(f'the process that compares answers ended with code {process.returncode} at its start')
    return process
