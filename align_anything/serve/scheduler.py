"""Requests that come at once are answered together: a bounded queue, and one thread that owns the model."""

from __future__ import annotations

import itertools
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from align_anything.core.errors import FOREIGN_FAULTS
from align_anything.core.logging import get_logger
from align_anything.core.types import Response
from align_anything.serve.answering import Answerer, Prompt, Wish

logger = get_logger(__name__)

GATHERING_SECONDS = 0.005
"""How long the first request of a batch waits for others that come with it."""

Hear = Callable[[int, dict[str, Any]], None]
"""Hears the parts of an answer as they are generated: the number of the response, and what comes next of it."""


class Full(Exception):
    """More requests wait than may."""


class Late(Exception):
    """The time of a request was over before it was answered."""


@dataclass(eq=False)
class Job:
    """One prompt on its way to its responses.

    Attributes:
        prompt: what is answered, and how.
        seed: of what is sampled.
        deadline: by `time.monotonic()`, after which nobody waits for it.
        hear: is told parts as they come, from the thread of the model; None where nobody listens.
        answer: the responses, or why there are none.
    """

    prompt: Prompt
    seed: int
    deadline: float
    hear: Hear | None = None
    answer: Future[list[Response]] = field(default_factory=Future)
    _given_up: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        # Whoever waits may stop to, which must not cancel what the thread of the model is going to set.
        self.answer.set_running_or_notify_cancel()

    def give_up(self) -> None:
        """Nobody waits for the answer any more: what is generated of it ends with the next token."""
        self._given_up.set()

    @property
    def wish(self) -> Wish:
        """How it is answered."""
        return self.prompt.wish

    @property
    def is_over(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._given_up.is_set() or time.monotonic() > self.deadline


class Scheduler:
    """Answers jobs, those of equal wishes that wait at the same time together, the oldest first.

    Args:
        answerer: the model.
        batch_size: responses that are generated at once, unless one job alone wants more.
        queue_size: jobs that may wait.
        observe: is told the number of responses in each batch.
    """

    def __init__(
        self,
        answerer: Answerer,
        batch_size: int,
        queue_size: int,
        observe: Callable[[int], None] = lambda responses: None,
    ) -> None:
        self._answerer, self._batch_size, self._queue_size = answerer, batch_size, queue_size
        self._observe = observe
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name='answers', daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Jobs that are being answered."""
        return len(self._running)

    @property
    def works(self) -> bool:
        """Whether the thread of the model lives."""
        return self._thread.is_alive()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queues jobs, all or none. Raises Full where there is no place for them."""
        with self._changed:
            if len(self._waiting) + len(jobs) > self._queue_size or self._closed:
                raise Full
            self._waiting.extend(jobs)
            self._changed.notify()

    def close(self) -> None:
        """Ends the thread once all that waits is answered."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next():
            self._running = batch
            self._observe(sum(job.wish.responses for job in batch))
            self._answer(batch)
            self._running = []

    def _next(self) -> list[Job]:
        """Waits for jobs and takes those that go together out of the queue; an empty list once it is closed."""
        with self._changed:
            while True:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                self._gather()
                self._drop_late()
                if batch := self._together():
                    for job in batch:
                        self._waiting.remove(job)
                    return batch
                if self._closed:
                    return []

    def _gather(self) -> None:
        end = time.monotonic() + GATHERING_SECONDS
        while not self._closed and len(self._waiting) < self._batch_size and (left := end - time.monotonic()) > 0:
            self._changed.wait(left)

    def _together(self) -> list[Job]:
        """The oldest job with those that can be answered with it."""
        batch: list[Job] = []
        for job in self._waiting:
            if batch and job.wish != batch[0].wish:
                continue
            if batch and (len(batch) + 1) * job.wish.responses > self._batch_size:
                break
            batch.append(job)
        return batch

    def _drop_late(self) -> None:
        for job in [job for job in self._waiting if job.is_over]:
            self._waiting.remove(job)
            job.answer.set_exception(Late())

    def _answer(self, batch: Sequence[Job]) -> None:
        heard = [False] * len(batch)

        def tell(number: int, which: int, part: dict[str, Any]) -> bool:
            job = batch[number]
            if job.is_over:
                return True
            if job.hear is not None:
                heard[number] = True
                job.hear(which, part)
            return False

        prompts, seeds = [job.prompt for job in batch], [job.seed for job in batch]
        try:
            found = self._answerer.generate(prompts, seeds, tell)
        except FOREIGN_FAULTS as error:
            if len(batch) == 1:
                batch[0].answer.set_exception(error)
                return
            # One prompt may cost only itself. An answer that was begun cannot be taken back.
            logger.warning('%d requests failed together with %s: now each alone', len(batch), type(error).__name__)
            for job, begun in zip(batch, heard, strict=True):
                if begun:
                    job.answer.set_exception(error)
                else:
                    self._answer([job])
            return
        for job, responses in zip(batch, found, strict=True):
            if job.is_over:
                job.answer.set_exception(Late())
            else:
                job.answer.set_result(responses)


def seeds() -> Callable[[], int]:
    """Returns what gives the seeds of requests that name none, others in each process."""
    counted = itertools.count(secrets.randbits(48))
    return lambda: next(counted)
