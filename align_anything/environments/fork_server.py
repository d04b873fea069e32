"""The process that the processes of environments are forked from: it has imported what they need, and nothing else.

`python -m align_anything.environments.fork_server DESCRIPTOR` serves a socket: a message with a descriptor forks a
worker that answers at it, one with the number of a process ends that, and all that it has started. It has no threads
and no device, so that it can be forked safely, and it ends with the run that started it.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
import time
from contextlib import suppress

import psutil

from align_anything.environments.wire import Line
from align_anything.environments.worker import work

MOST_BYTES = 4096
END_SECONDS = 5.0
"""How long the kernel may take to end a process that was killed."""
PAUSE = 0.002
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
READY, END = b'ready', b'end'


def serve(control: socket.socket) -> None:
    """Forks and ends workers as it is told, until the other side is gone or says the end; then ends them all."""
    _control_process(PR_SET_CHILD_SUBREAPER, 1)
    workers: set[int] = set()
    control.send(READY)
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, MOST_BYTES, 1)
        if message in (b'', END):
            break
        if descriptors:
            pid = os.fork()
            if not pid:
                control.close()
                _become_worker(descriptors[0])
            os.close(descriptors[0])
            workers.add(pid)
            control.send(json.dumps(pid).encode())
        else:
            pid = json.loads(message)
            workers.discard(pid)
            control.send(json.dumps(_ended(pid, workers)).encode())
    for pid in workers:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    _clear(set())


def _become_worker(descriptor: int) -> None:
    """Answers at a socket until it ends; never returns."""
    code = 1
    try:
        # What it starts is of its session, and is found again under it.
        os.setsid()
        _control_process(PR_SET_PDEATHSIG, signal.SIGKILL)
        _control_process(PR_SET_CHILD_SUBREAPER, 1)
        work(Line(socket.socket(fileno=descriptor)))
        code = 0
    finally:
        os._exit(code)


def _ended(pid: int, others: set[int]) -> int | None:
    """Ends a worker and what it has started; returns how it ended, as `os.waitpid` tells it, None if it does not."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    status = _waited(pid)
    _clear(others)
    return status


def _clear(workers: set[int]) -> None:
    """Ends what ended workers have left, which is this process's since then."""
    end = time.monotonic() + END_SECONDS
    while time.monotonic() < end:
        left = [child.pid for child in psutil.Process().children() if child.pid not in workers]
        if not left:
            return
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            _waited(pid)


def _waited(pid: int) -> int | None:
    end = time.monotonic() + END_SECONDS
    while time.monotonic() < end:
        try:
            found, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            return None
        if found:
            return status
        time.sleep(PAUSE)
    return None


def _control_process(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


if __name__ == '__main__':
    serve(socket.socket(fileno=int(sys.argv[1])))
