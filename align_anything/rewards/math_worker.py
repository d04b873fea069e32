"""The process in which mathematical answers are compared, within limits that only a process can have."""

from __future__ import annotations

import json
import resource
import signal
import sys

from align_anything.rewards.final_answer import is_sentence
from align_anything.rewards.math_equality import equal

MEMORY = 2**30


def work() -> None:
    """Reads `[golden, answer, seconds]` as lines of JSON and writes for each whether they are equal.

    It writes null for other answers than a golden one that is a sentence.
    """
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
        found = equal(golden, answer) or (None if is_sentence(golden) else False)
        signal.setitimer(signal.ITIMER_PROF, 0)
        replies.write(json.dumps(found) + '\n')
        replies.flush()


if __name__ == '__main__':
    work()
