"""Clocks, and processes that measure without disturbing each other."""

from __future__ import annotations

import ctypes
import importlib
import multiprocessing
import os
import resource
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any


def cpu_seconds() -> float:
    """CPU seconds of this process and of the workers it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


@dataclass
class StepClock:
    """CPU seconds between the ends of consecutive optimizer steps, so that everything of a loop is counted.

    The first step, which pays for kernel selection and allocation, only starts the clock.

    Attributes:
        marks: CPU seconds at the end of each step.
        losses, norms: the loss and the norm of the gradient of each step.
    """

    marks: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)

    def mark(self) -> None:
        """Says that an optimizer step is done."""
        self.marks.append(cpu_seconds())

    def spend(self, seconds: float) -> None:
        """Says that an optimizer step took so many CPU seconds, where what lies between steps is not to count."""
        self.marks.append((self.marks[-1] if self.marks else 0.0) + seconds)

    @property
    def seconds(self) -> list[float]:
        """CPU seconds of each step after the first."""
        return [after - before for before, after in zip(self.marks, self.marks[1:], strict=False)]


def best_per_step(rounds: list[list[float]]) -> float:
    """CPU seconds of all steps, each at its quickest round: other users of the machine only ever slow a step down."""
    return sum(min(times) for times in zip(*rounds, strict=True))


def resident() -> int:
    """Bytes of this process that are in memory."""
    return _status('VmRSS')


def peak() -> int:
    """The most bytes of this process that were in memory since `reset_peak`."""
    return _status('VmHWM')


def reset_peak() -> None:
    """Forgets what was in memory before now."""
    # 5 resets the high-water mark of this process's resident memory; ru_maxrss would be the parent's after a fork.
    Path('/proc/self/clear_refs').write_text('5', encoding='utf-8')


def free_at_once() -> None:
    """Lets this process give each freed tensor back to the system, so that what is resident is what is in use.

    Else blocks below 32 MiB stay for later ones, and a process of smaller tensors seems to need more.
    """
    threshold = -3  # M_MMAP_THRESHOLD of mallopt(3)
    ctypes.CDLL(None).mallopt(threshold, 1 << 20)


def _status(name: str) -> int:
    lines = Path('/proc/self/status').read_text(encoding='utf-8').splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f'{name}:'))


def preload(*modules: str) -> None:
    """Imports what several children need, once, before they are forked."""
    for name in modules:
        importlib.import_module(name)


def in_child(function: Callable[..., Any], *args: Any) -> Any:
    """Returns `function(*args)` of a forked process, so that no side inherits the state of the one before.

    The libraries that the parent has imported need not be imported again. What the child prints is dropped, so that
    progress bars of other trainers don't bury the figures. Raises RuntimeError with its traceback when it failed.
    """
    return _in_processes([{}], function, args)[0]


def in_ranks(ranks: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """As `in_child`, in as many processes that run together as ranks of one launch; returns their values in order."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    launch = {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port, 'WORLD_SIZE': ranks, 'LOCAL_WORLD_SIZE': ranks}
    environments = [
        {key: str(value) for key, value in {**launch, 'RANK': rank, 'LOCAL_RANK': rank}.items()}
        for rank in range(ranks)
    ]
    return _in_processes(environments, function, args)


def _in_processes(environments: list[dict[str, str]], function: Callable[..., Any], args: tuple[Any, ...]) -> list[Any]:
    context = multiprocessing.get_context('fork')
    children = {}
    for number, environment in enumerate(environments):
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=_send, args=(sender, environment, function, args))
        child.start()
        sender.close()
        children[receiver] = (number, child)
    values: list[Any] = [None] * len(environments)
    waiting, failure = set(children), ''
    while waiting and not failure:
        for receiver in wait(list(waiting)):
            waiting.discard(receiver)
            number, child = children[receiver]
            try:
                values[number], failure = receiver.recv()
            except EOFError:
                failure = 'the process ended without a result'
            if failure:
                break
    for _, child in children.values():
        if failure:
            # The others wait for the one that failed.
            child.terminate()
        child.join()
    if failure:
        raise RuntimeError(f'{function.__name__} failed in its process:\n{failure}')
    return values


def _send(sender: Any, environment: dict[str, str], function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ.update(environment)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    try:
        sender.send((function(*args), ''))
    except Exception:  # handed to the parent, which raises it
        sender.send((None, traceback.format_exc()))
        raise
