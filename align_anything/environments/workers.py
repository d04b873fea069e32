"""Environments in processes of their own: on the CPU, with a time limit, and another process for one that is lost."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from align_anything.core.errors import WorldError
from align_anything.core.logging import get_logger
from align_anything.environments.base import BatchEnvironment, capacity_of
from align_anything.environments.fork_server import END, END_SECONDS, MOST_BYTES, READY
from align_anything.environments.hosts import Elsewhere, Fault, Lost
from align_anything.environments.wire import Line

logger = get_logger(__name__)

SERVER = 'align_anything.environments.fork_server'
ROOT = Path(__file__).parents[2]
SECONDS = 120.0
"""In which an environment answers, where no setting says."""
STDERR = 2
START_SECONDS = 600.0
"""In which libraries are imported: that of PyTorch can take long where many do it at once."""
UNSEEN = {'CUDA_VISIBLE_DEVICES': '', 'HIP_VISIBLE_DEVICES': '', 'ONEAPI_DEVICE_SELECTOR': 'opencl:cpu'}
"""What hides the devices of the run: an environment that takes memory there would end it."""


class Workers:
    """Processes for environments, each of which has several, and answers for one after the other.

    Args:
        lanes: how many there are.
        seconds: in which `reset`, `step` and `score` must each be answered; a process that takes longer is ended.
        devices: whether environments see the devices of this machine.
    """

    def __init__(self, lanes: int, seconds: float = SECONDS, devices: bool = False) -> None:
        self.lanes = lanes
        self._server = _ForkServer({} if devices else UNSEEN)
        self.workers = [Worker(self._server, seconds) for _ in range(lanes)]
        # Workers end with the other side of their lines, whoever forgets to close this.
        weakref.finalize(self, self._server.close)

    def capacity(self, name: str) -> int | None:
        """As `Host.capacity`."""
        return capacity_of(name)

    def make(self, name: str, kwargs: Mapping[str, Any], lane: int) -> BatchEnvironment:
        """As `Host.make`."""
        return Elsewhere(Tenant(self.workers[lane]), name, kwargs)

    def close(self) -> None:
        """Ends all processes, and what they have started."""
        for worker in self.workers:
            worker.close()
        self._server.close()


class Tenant:
    """What knows which of the processes of a worker an environment lives in. It begins with `reset`.

    Args:
        worker: the worker.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker, self._age = worker, -1

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """As `Askable.ask`."""
        answer, self._age = self._worker.ask(message, None if message['call'] == 'reset' else self._age)
        return answer


class Worker:
    """A process that environments live in, and the next one when it is lost. It can be asked from any thread."""

    def __init__(self, server: _ForkServer, seconds: float) -> None:
        self._server, self._seconds = server, seconds
        self._lock = threading.Lock()
        self._line: Line | None = None
        self._loaded: set[str] = set()
        self.pid: int | None = None
        self._age = 0

    def ask(self, message: Mapping[str, Any], age: int | None) -> tuple[dict[str, Any], int]:
        """Returns what the process answers, and the number of the process.

        Raises Lost where it is not the one of number `age`, and Fault where it ends or takes too long.
        """
        with self._lock:
            if self._line is not None and self._line.has_something():
                # Nothing was asked: it is the end, or nobody's answer.
                self._end()
            if age is not None and age != self._age:
                raise Lost
            call, name = message['call'], message.get('name')
            if self._line is None:
                self._start()
            if name is not None and name not in self._loaded:
                self._loaded.add(name)
                self._exchange({'call': 'load', 'name': name}, START_SECONDS)
            answer = self._exchange(message, self._seconds)
            if call == 'close' and isinstance(answer, dict) and answer.get('left'):
                # Nobody lives here now: what was left behind goes with the process.
                self._end()
            return answer, self._age

    def close(self) -> None:
        """Ends the process."""
        with self._lock:
            self._end()

    def _exchange(self, message: Mapping[str, Any], seconds: float) -> Any:
        call = message['call']
        try:
            self._line.send(message, seconds)
            answer = self._line.receive(seconds)
        except TimeoutError:
            self._end()
            raise Fault(
                f'{call} took longer than {seconds:g} s (environment_timeout); its process was ended.'
            ) from None
        except OSError:
            answer = None
        except WorldError:
            # What comes next could be anything.
            self._end()
            raise
        if answer is None:
            raise Fault(f'its process ended in {call}{_told(self._end())}.')
        return answer

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.pid = self._server.fork(theirs)
        self._line, self._loaded = Line(ours), set()

    def _end(self) -> int | None:
        """Ends the process, if there is one; the next one has another number. Returns how it ended."""
        if self._line is None:
            return None
        self._line.close()
        self._line = None
        self._age += 1
        pid, self.pid = self.pid, None
        return self._server.end(pid)


def _told(status: int | None) -> str:
    if status is None:
        return ''
    if os.WIFSIGNALED(status):
        return f', by signal {signal.Signals(os.WTERMSIG(status)).name}'
    return f', with exit code {os.WEXITSTATUS(status)}'


class _ForkServer:
    """The process that workers are forked from, started at once, waited for when it is needed, and again if it ends."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables, self._owner = variables, os.getpid()
        self._lock = threading.Lock()
        self._ready = False
        self._start()

    def fork(self, connection: socket.socket) -> int:
        """Returns the number of a new worker that answers at the other side of the connection."""
        with self._lock:
            if self._process.poll() is not None:
                self._control.close()
                self._start()
            return self._told(lambda: socket.send_fds(self._control, [b'fork'], [connection.fileno()]))

    def end(self, pid: int) -> int | None:
        """Ends a worker and what it has started; returns how it ended, as `os.waitpid` tells it."""
        with self._lock:
            try:
                return self._told(lambda: self._control.send(json.dumps(pid).encode()))
            except WorldError:
                # They go with it.
                return None

    def close(self) -> None:
        """Ends it, and all workers; a fork of this process has nothing to end."""
        if os.getpid() != self._owner:
            return
        with self._lock:
            with suppress(OSError):
                # Others may hold the line: loaders of data that were forked here.
                self._control.send(END)
            self._control.close()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(END_SECONDS)
            self._process.kill()

    def _start(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(START_SECONDS)
        self._ready = False
        paths = [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
        given = {'OMP_NUM_THREADS': '1', **os.environ, **self._variables, 'PYTHONPATH': os.pathsep.join(paths)}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, '-P', '-m', SERVER, str(theirs.fileno())],
                env=given,
                stdin=subprocess.DEVNULL,
                stdout=STDERR,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def _told(self, ask: Any) -> Any:
        try:
            if not self._ready and self._control.recv(MOST_BYTES) != READY:
                raise OSError('it ended at its start')
            self._ready = True
            ask()
            answer = self._control.recv(MOST_BYTES)
        except OSError as error:
            raise WorldError(f'the process that environments are forked from is gone: {error}.') from error
        if not answer:
            raise WorldError('the process that environments are forked from is gone.')
        return json.loads(answer)
