"""Clocks, and processes that measure without disturbing each other."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import resource
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


def cpu_seconds() -> float:
    """CPU seconds of this process and of the workers it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


@dataclass
class StepClock:
    """CPU seconds between the ends of consecutive optimizer steps, so that everything of a loop is counted.

    The first step, which pays for kernel selection and allocation, only starts the clock.
    """

    marks: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def mark(self) -> None:
        """Says that an optimizer step is done."""
        self.marks.append(cpu_seconds())

    @property
    def seconds(self) -> list[float]:
        """CPU seconds of each step after the first."""
        return [after - before for before, after in zip(self.marks, self.marks[1:], strict=False)]


def best_per_step(rounds: list[list[float]]) -> float:
    """CPU seconds of all steps, each at its quickest round: other users of the machine only ever slow a step down."""
    return sum(min(times) for times in zip(*rounds, strict=True))


def preload(*modules: str) -> None:
    """Imports what several children need, once, before they are forked."""
    for name in modules:
        importlib.import_module(name)


def in_child(function: Callable[..., Any], *args: Any) -> Any:
    """Returns `function(*args)` of a forked process, so that no side inherits the state of the one before.

    The libraries that the parent has imported need not be imported again. What the child prints is dropped, so that
    progress bars of other trainers don't bury the figures. Raises RuntimeError with its traceback when it failed.
    """
    context = multiprocessing.get_context('fork')
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_send, args=(sender, function, args))
    child.start()
    sender.close()
    try:
        value, failure = receiver.recv()
    except EOFError:
        value, failure = None, 'the process ended without a result'
    child.join()
    if failure:
        raise RuntimeError(f'{function.__name__} failed in its process:\n{failure}')
    return value


def _send(sender: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    try:
        sender.send((function(*args), ''))
    except Exception:  # handed to the parent, which raises it
        sender.send((None, traceback.format_exc()))
        raise
