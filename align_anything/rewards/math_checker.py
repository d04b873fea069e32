"""Comparison of mathematical answers, in a process of its own.

Simplifying what a model wrote can take for ever or all memory (`9^{9^{9^9}}`). The timeouts of math-verify are signals,
which only the main thread may set and which do not interrupt arithmetic on huge numbers. A process can be ended.
"""

from __future__ import annotations

import functools
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading

MEMORY = 4 * 2**30
DELIMITED = re.compile(r'\$|\\\(|\\\[|\\boxed')
# Written without spaces around numbers, which math-verify then does not see.
HAN = re.compile(r'[\u3000-\u30ff\u3400-\u9fff\uac00-\ud7af\uff00-\uffef]')
COMMAND = re.compile(r'\\(?:text|mathrm|operatorname)\{[^{}]*\}|\\[A-Za-z]+')
PROSE = re.compile(rf'[^\W\d_]{{3,}}|{HAN.pattern}|\n')


class MathChecker:
    """One process that compares answers, started at the first comparison and again after it was ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def equal(self, golden: str, answer: str, seconds: float) -> bool | None:
        """Returns whether the two texts mean the same, or None when the golden one has no mathematics in it.

        An answer that cannot be compared within `seconds` of computing, or within 4 GiB of memory, is not the same.
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
    process = subprocess.Popen(
        [sys.executable, '-P', __file__],
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


def _delimited(text: str) -> str:
    """Returns text as math-verify reads it: mathematics between dollar signs unless there are other words.

    Without the signs it would take the number 2 out of `2\\sqrt{3}`. What follows `####` is the result in GSM8K.
    """
    text = text.rpartition('####')[2].strip()
    if not text or DELIMITED.search(text) or PROSE.search(COMMAND.sub(' ', text)):
        return HAN.sub(' ', text)
    return f'${text}$'


def _compare(golden: str, answer: str) -> bool | None:
    from math_verify import parse, verify

    wanted = parse(_delimited(golden), parsing_timeout=None)
    if not wanted:
        return None
    given = parse(_delimited(answer), parsing_timeout=None)
    return bool(given) and verify(wanted, given, timeout_seconds=None)


def _work() -> None:
    """Reads `[golden, answer, seconds]` as lines of JSON and writes for each whether they are equal."""
    import math_verify  # noqa: F401  # before the first comparison, whose time is limited

    replies, sys.stdout = sys.stdout, sys.stderr
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    # Without a handler the timer ends the process, whatever it is doing, also when its parent is gone. It counts the
    # time of the processor, so that rewards do not depend on what else the machine does.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    replies.write('ready\n')
    replies.flush()
    for line in sys.stdin:
        golden, answer, seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        equal = _compare(golden, answer)
        signal.setitimer(signal.ITIMER_PROF, 0)
        replies.write(json.dumps(equal) + '\n')
        replies.flush()


if __name__ == '__main__':
    _work()
