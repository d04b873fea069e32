"""The HTTP server: what is asked in OpenAI's form, or OMEGA's, answered by one model, and judged by another."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from align_anything.core.asgi import MEBIBYTE
from align_anything.core.errors import SampleError, SettingsError
from align_anything.core.logging import get_logger
from align_anything.core.types import Message, Response
from align_anything.serve import errors
from align_anything.serve.answering import Answerer, Prompt, Wish
from align_anything.serve.door import Keys
from align_anything.serve.errors import RequestError
from align_anything.serve.judging import Judge
from align_anything.serve.messages import MediaLimits
from align_anything.serve.metrics import Metrics
from align_anything.serve.requests import Body, read_body
from align_anything.serve.scheduler import Full, Hear, Job, Late, Scheduler, seeds

if TYPE_CHECKING:
    from fastapi import Request

logger = get_logger(__name__)

RETRY_SECONDS = 1
CLIENT_GONE = 499
B = TypeVar('B', bound=Body)
T = TypeVar('T')


@dataclass(frozen=True)
class Limits:
    """What the server takes.

    Attributes:
        body: bytes of the largest request.
        seconds: in which a request must be answered.
        batch_size: responses that are generated at once.
        queue_size: prompts that may wait.
        media: of a request.
    """

    body: int = 64 * MEBIBYTE
    seconds: float = 600.0
    batch_size: int = 32
    queue_size: int = 256
    media: MediaLimits = field(default_factory=MediaLimits)


class Server:
    """A model that answers, one that judges, or both, and what requests need of them.

    Args:
        name: what the model that answers goes by.
        answerer: it; None where there is none.
        judge: what judges.
        limits: what is taken.
        keys: that are let in.
        host: the address that it listens at.
    """

    def __init__(
        self,
        name: str,
        answerer: Answerer | None = None,
        judge: Judge | None = None,
        limits: Limits | None = None,
        keys: Keys | None = None,
        host: str = '127.0.0.1',
    ) -> None:
        self.name, self.judge, self.keys, self.host = name, judge, keys or Keys([]), host
        self.limits = limits or Limits()
        self.created = int(time.time())
        self._answerer = answerer
        self.metrics = Metrics(self._waiting, self._running)
        self._next_seed = seeds()
        self._judged = 0
        self.scheduler = None
        if answerer is not None:
            self.scheduler = Scheduler(
                answerer, self.limits.batch_size, self.limits.queue_size, observe=self.metrics.batch
            )

    def close(self) -> None:
        """Answers what waits, and ends."""
        if self.scheduler is not None:
            self.scheduler.close()

    @property
    def answerer(self) -> Answerer:
        """The model that answers. Raises RequestError where there is none."""
        if self._answerer is None:
            raise RequestError('this server judges answers and gives none.', status=errors.NOT_FOUND)
        return self._answerer

    @property
    def answers(self) -> bool:
        """Whether there is a model that answers."""
        return self._answerer is not None

    def check_model(self, asked: str | None, name: str | None = None) -> None:
        """Raises RequestError where another model is asked for than the one of this `name`, by default the answerer."""
        if name is None:
            name = self.name if self.answerer else ''
        if asked not in (None, name):
            raise RequestError(
                f'there is no model {asked[:80]!r} here, but {name!r}.',
                status=errors.NOT_FOUND,
                param='model',
                code='model_not_found',
            )

    async def body(self, request: Request, kind: type[B]) -> B:
        """Returns the body of a request. Raises RequestError for what is no JSON of that kind, or does not come."""
        if request.headers.get('content-type', '').partition(';')[0].strip().lower() != 'application/json':
            raise RequestError('the content type must be application/json.', status=errors.UNSUPPORTED)
        try:
            async with asyncio.timeout(self.limits.seconds):
                content = await request.body()
        except TimeoutError as error:
            raise RequestError('the body took too long to come.', status=errors.TIMEOUT) from error
        return read_body(kind, content)

    async def prompt(
        self,
        make: Callable[[], Sequence[Message]],
        wish: Wish,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> Prompt:
        """Returns the prompt of the turns that `make` returns; both are made in a thread. Raises RequestError."""
        from fastapi.concurrency import run_in_threadpool

        answerer = self.answerer
        if self.scheduler.waiting >= self.limits.queue_size:
            raise _full()
        try:
            return await run_in_threadpool(lambda: answerer.prepare(make(), tools, wish))
        except SettingsError as error:
            raise RequestError(' '.join(error.problems), code='not_obeyed') from error
        except SampleError as error:
            raise RequestError(str(error), param='messages', code='unusable_prompt') from error

    def submit(self, prompt: Prompt, seed: int | None, hear: Hear | None = None) -> Job:
        """Queues a prompt. Raises RequestError where the queue is full."""
        own = self._next_seed() if seed is None else seed % 2**63
        job = Job(prompt, own, time.monotonic() + self.limits.seconds, hear)
        try:
            self.scheduler.submit([job])
        except Full as error:
            raise _full() from error
        return job

    async def responses(self, request: Request, job: Job) -> list[Response]:
        """Returns the responses of a job. Raises RequestError where there are none in time, or the client is gone."""
        try:
            found = await self.unless_gone(request, asyncio.wrap_future(job.answer), job)
        except Late as error:
            raise self.late() from error
        self.count(job, found)
        return found

    async def unless_gone(self, request: Request, waited: Awaitable[T], job: Job) -> T:
        """Returns what is waited for, as long as the client of a job waits and its time is not over.

        Else the job is given up. Raises RequestError then, and what the job raises.
        """
        task, gone = asyncio.ensure_future(waited), asyncio.ensure_future(_disconnected(request))
        try:
            left = max(0.0, job.deadline - time.monotonic())
            await asyncio.wait({task, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if gone.done():
                raise RequestError('the client is gone.', status=CLIENT_GONE)
            raise self.late()
        finally:
            if not task.done():
                job.give_up()
                task.cancel()
            gone.cancel()

    @contextmanager
    def judging(self) -> Iterator[None]:
        """Lasts as long as a request is judged. Raises RequestError where too many are."""
        if self._judged >= self.limits.queue_size:
            raise _full()
        self._judged += 1
        try:
            yield
        finally:
            self._judged -= 1

    def late(self) -> RequestError:
        """Returns the error of an answer that was not there in time."""
        return RequestError(
            f'the answer was not there after {self.limits.seconds:g} s, the limit of this server.',
            status=errors.TOO_SLOW,
        )

    def now(self) -> int:
        """Returns the time, as answers tell it."""
        return int(time.time())

    def log_failure(self, error: BaseException) -> None:
        """Logs where an exception was raised, and no more: its message may quote what was sent."""
        frame = traceback.extract_tb(error.__traceback__)[-1]
        logger.error('a request failed with %s at %s:%d', type(error).__name__, frame.filename, frame.lineno)

    def count(self, job: Job, responses: Sequence[Response]) -> None:
        """Counts an answer in the metrics."""
        self.metrics.tokens(job.prompt.length, sum(map(len, responses)))

    def _waiting(self) -> int:
        return 0 if self.scheduler is None else self.scheduler.waiting

    def _running(self) -> int:
        return 0 if self.scheduler is None else self.scheduler.running


def _full() -> RequestError:
    return RequestError(
        'too many requests wait already: try again in a moment.',
        status=errors.OVERLOADED,
        code='overloaded',
        headers={'Retry-After': str(RETRY_SECONDS)},
    )


async def _disconnected(request: Request) -> None:
    while (await request.receive())['type'] != 'http.disconnect':
        pass
