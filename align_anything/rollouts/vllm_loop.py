"""The one thread in which an engine works: requests that come while others run join them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Protocol

import torch

from align_anything.rollouts.vllm_engine import Generated


class Stepping(Protocol):
    """What generates for many at once, by a token at a time."""

    def step(self) -> dict[str, Generated]:
        """Goes on with all that run; returns what is finished, by name."""
        ...


@dataclass
class _Work:
    """What the thread is to do: something alone, or to begin requests and go on with them until they are finished."""

    what: str
    act: Callable[[], Any]
    alone: bool
    future: Future[Any] = field(default_factory=Future)


@dataclass
class _Call:
    """Requests that came together, and which of them are finished."""

    names: Sequence[str]
    future: Future[list[Generated]]
    found: dict[str, Generated] = field(default_factory=dict)


class Loop:
    """Does what it is asked for in the order in which it came, in a thread of its own, whichever thread asks.

    Generating goes on side by side. What must be alone waits until nothing runs, and what comes later waits for it.
    """

    def __init__(self) -> None:
        self._queue: SimpleQueue[_Work] = SimpleQueue()
        self._calls: list[_Call] = []
        self._engine: Stepping | None = None
        self.doing: tuple[str, float] | None = None
        """What it does at present, and since when by `time.monotonic`."""
        Thread(target=self._run, name='engine', daemon=True).start()

    def alone(self, what: str, act: Callable[[], Any]) -> Any:
        """Returns what `act` returns, called when nothing else runs; raises what it raises."""
        work = _Work(what, act, alone=True)
        self._queue.put(work)
        return work.future.result()

    def generate(self, begin: Callable[[], tuple[Stepping, Sequence[str]]]) -> Future[list[Generated]]:
        """Returns what comes of requests, in their order.

        `begin` is called in the thread, hands them to the engine, and returns it with their names; what it raises fails
        them alone.
        """
        work = _Work('generating', begin, alone=False)
        self._queue.put(work)
        return work.future

    def _run(self) -> None:
        # On a CPU, loops in a new thread run on another number of cores until it first asks torch for theirs. vLLM
        # counts them before and after, and ends when they differ.
        torch.get_num_threads()
        first: _Work | None = None
        while True:
            while first is None:
                try:
                    work = self._queue.get(block=not self._calls)
                except Empty:
                    break
                if not work.future.set_running_or_notify_cancel():
                    continue
                if work.alone and self._calls:
                    first = work
                else:
                    self._do(work)
            if self._calls:
                self._step()
            elif first is not None:
                self._do(first)
                first = None

    def _do(self, work: _Work) -> None:
        if not self._calls:
            self.doing = (work.what, time.monotonic())
        try:
            found = work.act()
        except BaseException as error:
            self.doing = self.doing if self._calls else None
            work.future.set_exception(error)
            if not isinstance(error, Exception):
                raise
            return
        if work.alone:
            self.doing = None
            work.future.set_result(found)
            return
        self._engine, names = found
        self._calls.append(_Call(names, work.future))
        self._finish()

    def _step(self) -> None:
        assert self._engine is not None
        try:
            found = self._engine.step()
        except BaseException as error:
            failed, self._calls, self.doing = self._calls, [], None
            for call in failed:
                call.future.set_exception(error)
            if not isinstance(error, Exception):
                raise
            return
        for call in self._calls:
            call.found |= {name: found[name] for name in call.names if name in found}
        self._finish()

    def _finish(self) -> None:
        """Answers those whose requests are all finished."""
        done = [call for call in self._calls if len(call.found) == len(call.names)]
        self._calls = [call for call in self._calls if len(call.found) < len(call.names)]
        if not self._calls:
            self.doing = None
        for call in done:
            call.future.set_result([call.found[name] for name in call.names])
