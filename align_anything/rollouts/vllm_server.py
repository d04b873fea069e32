"""vLLM as a server on other devices or machines: `python -m align_anything.rollouts.vllm_server --port 8000`.

It loads no weights of its own: a run names its model and hands its weights over, again after each update.
"""

from __future__ import annotations

import asyncio
import math
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import torch
import typer
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    StrictBool,
    ValidationError,
    model_validator,
)
from torch import Tensor

from align_anything.core.asgi import MEBIBYTE, Guarded, bound_socket, serve_app
from align_anything.core.errors import AlignAnythingError, ModelError, SampleError, SettingsError
from align_anything.core.logging import get_logger
from align_anything.rollouts.vllm_engine import Engine, Generated, RequestError, VLLMOptions
from align_anything.rollouts.vllm_engine import Request as Generate
from align_anything.rollouts.vllm_loop import Loop
from align_anything.rollouts.vllm_parallel import ParallelEngine
from align_anything.rollouts.weight_group import join_group, receive
from align_anything.rollouts.wire import (
    RUN_HEADER,
    STRICT,
    call_of,
    named_media,
    pack_generated,
    problems_of,
    unpack,
    unpack_requests,
)

if TYPE_CHECKING:
    from fastapi import FastAPI, Request, Response

logger = get_logger(__name__)

BAD_REQUEST, SERVER_ERROR = 400, 500
USER_ERROR = 2
MOST_MEMBERS = 1024
GROUP_SECONDS = 60.0
# The largest weight of a model goes in one message.
BODY_MIB = 16 * 1024
DTYPES = ('float64', 'float32', 'bfloat16', 'float16', 'int64', 'int32', 'int16', 'int8', 'uint8', 'bool')


class Options(BaseModel):
    """`VLLMOptions` as a run sends them."""

    model_config = STRICT

    dtype: Literal['float32', 'bfloat16', 'float16']
    max_length: PositiveInt
    reweighs: bool = False
    grammar: bool = False
    tensor_parallel_size: Literal[1] = 1
    memory: float = Field(0.3, gt=0, le=1)
    eager: bool = True
    prefix_caching: bool = True
    sleeps: bool = False
    processor_kwargs: dict[str, Any] | None = None
    trust_remote_code: bool = False


class Member(BaseModel):
    """What a server must know to join the group of the rank that feeds it.

    Of one with several devices `rank` is that of its first; its workers join, so it starts with the `model` first.
    """

    model_config = STRICT

    host: str = Field(min_length=1)
    port: int = Field(ge=1, le=65535)
    rank: int = Field(ge=1)
    size: int = Field(ge=2, le=MOST_MEMBERS)
    backend: Literal['gloo', 'nccl']
    model: str | None = Field(None, min_length=1)
    options: Options | None = None

    @model_validator(mode='after')
    def _is_one_of_them(self) -> Member:
        if self.rank >= self.size:
            raise ValueError(f'rank {self.rank} is none of {self.size} members')
        return self


class Shape(NamedTuple):
    """A tensor that the group sends."""

    name: str
    dtype: Literal[DTYPES]
    shape: list[NonNegativeInt]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * getattr(torch, self.dtype).itemsize


class Chunk(BaseModel):
    """A chunk of the weights: of which model, how vLLM runs, and what the group sends if it is not beside this."""

    # Not strict: JSON has lists where there are tuples here.
    model_config = ConfigDict(extra='forbid')

    model: str = Field(min_length=1)
    options: Options
    first: StrictBool
    last: StrictBool
    backend: Literal['gloo', 'nccl'] | None
    shapes: list[Shape] = []


class Served:
    """The one engine of a server. Its methods take messages and the id of the run that sends them, from any thread.

    Requests that come while others run join them; weights are taken when none runs.

    Args:
        trust_remote_code: whether a run may ask for a model that brings its own code.
        group_seconds: how long members of a group, and each tensor that it sends, are waited for.
        limit: bytes of the weights that a group sends at once.
        split: devices that a copy of the model is split over.
        copies: how many of them there are.
    """

    def __init__(
        self,
        trust_remote_code: bool = False,
        group_seconds: float = GROUP_SECONDS,
        limit: int = BODY_MIB * MEBIBYTE,
        split: int = 1,
        copies: int = 1,
    ) -> None:
        self._split, self._copies = split, copies
        self._trusts_code, self._seconds, self._limit = trust_remote_code, group_seconds, limit
        self._loop = Loop()
        self._holding = threading.Lock()
        self._engine: Engine | ParallelEngine | None = None
        self._waiting: dict[str, Tensor] = {}
        # Whose weights these are, None where they are nobody's: not all there, or broken.
        self._run: str | None = None
        self._whole = False  # whether the last chunk was there
        self._media: dict[str, Any] = {}
        self._group: Any = None
        self._group_of: str | None = None

    @property
    def workers(self) -> int:
        """The processes that are handed weights, each a device."""
        return self._split * self._copies

    def health(self) -> dict[str, Any]:
        """What runs, for whom, and what it does at present, for how many seconds."""
        doing, engine = self._loop.doing, self._engine
        told = {'status': 'ok', 'model': None if engine is None else engine.source}
        if self.workers > 1:
            told['workers'] = self.workers
        if self._run is not None:
            told['run'] = self._run
        if doing is None:
            return told
        what, since = doing
        return {**told, 'status': 'busy', 'doing': what, 'seconds': round(time.monotonic() - since, 3)}

    def join(self, message: bytes, run: str = '') -> dict[str, Any]:
        """Joins the group of the rank that feeds this server."""
        member = Member.model_validate(unpack(message)[0])

        def joined() -> None:
            self._group = None
            where = member.model_dump(exclude={'model', 'options'})
            if self.workers == 1:
                self._group = join_group(**where, seconds=self._seconds)
            else:
                if member.model is None or member.options is None:
                    raise SampleError('the workers of several devices join: say of which model, with which options.')
                self._engine = self._opened(member.model, VLLMOptions(**member.options.model_dump()))
                self._engine.join(**where, seconds=self._seconds)
                self._group = self._engine
            self._group_of = run

        self._loop.alone('joining a group', joined)
        return {'rank': member.rank}

    def take(self, message: bytes, run: str = '') -> dict[str, Any]:
        """Takes a chunk of the weights, out of the message or the group; with the last the engine loads them all.

        The first chunk of another run takes the server over.
        """
        record, tensors = unpack(message)
        chunk = Chunk.model_validate(record)
        return self._loop.alone('taking weights', lambda: self._taken(chunk, tensors, run))

    def _taken(self, chunk: Chunk, tensors: dict[str, Tensor], run: str) -> dict[str, Any]:
        self._check_chunk(chunk, tensors, run)
        if chunk.first:
            # Opened first: what is refused leaves all as it was.
            self._engine = self._opened(chunk.model, VLLMOptions(**chunk.options.model_dump()))
            self._waiting, self._run, self._whole = {}, run, False
            if isinstance(self._engine, ParallelEngine):
                self._engine.begin_weights()
            with self._holding:
                self._media = {}
        try:
            if isinstance(self._engine, ParallelEngine):
                return self._handed_on(self._engine, chunk, tensors)
            if chunk.backend is not None:
                tensors = receive(self._group, chunk.shapes, chunk.backend, self._seconds)
            self._waiting |= tensors
            if chunk.last:
                waiting, self._waiting = self._waiting, {}
                self._engine.load(lambda: iter(waiting.items()))
                self._whole = True
        except BaseException:
            self._forget()
            raise
        return {'weights': len(tensors)}

    def _handed_on(self, engine: ParallelEngine, chunk: Chunk, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """Gives a chunk to all workers."""
        if chunk.backend is None:
            engine.read(tensors)
        else:
            engine.receive(chunk.shapes, chunk.backend, self._seconds)
        if chunk.last:
            engine.use()
            self._whole = True
        return {'weights': len(tensors) or len(chunk.shapes)}

    def _check_chunk(self, chunk: Chunk, tensors: Mapping[str, Tensor], run: str) -> None:
        if not chunk.first and (self._engine is None or self._run is None):
            raise SampleError('the first chunk of these weights was never sent.')
        if not chunk.first and self._run != run:
            raise SampleError(f'the first chunk was one of run {self._run!r}, but this is one of {run!r}.')
        if chunk.backend is None:
            if chunk.shapes:
                raise SampleError('weights are announced (shapes) but there is no group that sends them (backend).')
            return
        if tensors:
            raise SampleError('weights come with this message and through a group; they must come one way.')
        if self._group is None or self._group_of != run:
            raise SampleError('this server is in no group of this run: it must join one first (/group).')
        announced = sum(shape.nbytes for shape in chunk.shapes)
        if announced > self._limit:
            raise SampleError(f'{announced} bytes of weights are announced, more than the {self._limit} of a message.')

    def _forget(self) -> None:
        """After weights that did not arrive whole: nobody may generate with what is left."""
        self._waiting, self._run, self._whole, self._group = {}, None, False, None
        if self._engine is not None and not self._engine.started:
            self._engine = None

    def close(self) -> None:
        """Ends the processes of an engine that has such."""
        if isinstance(self._engine, ParallelEngine):
            self._engine.close()

    def _opened(self, model: str, options: VLLMOptions) -> Engine | ParallelEngine:
        options = replace(options, tensor_parallel_size=self._split)
        if options.trust_remote_code and not self._trusts_code:
            raise ModelError('this server runs no code out of checkpoints: start it with --trust-remote-code.')
        if self._engine is None or not self._engine.started:
            if self.workers == 1:
                return Engine(model, options)
            engine = ParallelEngine(model, options, self._copies)
            engine.start()
            return engine
        if (self._engine.source, self._engine.options) != (model, options):
            raise ModelError(
                f'this server generates with {self._engine.source}, and with other options: start it anew for {model}.'
            )
        return self._engine

    def generate(self, message: bytes, run: str = '') -> Future[list[Generated]]:
        """Begins to generate for the requests in a message; returns what will come of them."""
        requests = unpack_requests(message, self._media)

        def begin() -> tuple[Engine | ParallelEngine, list[str]]:
            if self._engine is None or self._run is None:
                raise ModelError('no run has handed weights to this server yet.')
            if not self._whole:
                raise SampleError('the last chunk of the weights was not sent yet.')
            if self._run != run:
                raise SampleError(f'this server has the weights of run {self._run!r} by now, not those of {run!r}.')
            self._check_lengths(requests, self._engine.options.max_length)
            return self._engine, self._engine.begin(requests)

        return self._loop.generate(begin)

    def hold(self, message: bytes, run: str = '') -> dict[str, Any]:
        """Keeps the media with names of the requests in a message, for later ones that bring the names alone.

        They stay until the rank that named them names others in another call, or new weights come.
        """
        with self._holding:
            named = named_media(unpack_requests(message, self._media))
            calls = dict(map(call_of, named))
            kept = {name: item for name, item in self._media.items() if _is_of(name, calls)}
            self._media = kept | named
        return {'media': len(named)}

    def _check_lengths(self, requests: Sequence[Generate], longest: int) -> None:
        for number, request in enumerate(requests):
            length = len(request.prompt['prompt_token_ids'])
            if length >= longest:
                raise SampleError(f'request {number} has {length} tokens, and vLLM was started for {longest}.')


def _is_of(name: str, calls: Mapping[str, str]) -> bool:
    """Whether a medium is of the call that its owner is at."""
    owner, call = call_of(name)
    return calls.get(owner, call) == call


def make_app(served: Served, limit: int = BODY_MIB * MEBIBYTE) -> FastAPI:
    """Returns the web application.

    `POST /group`, `/weights`, `/media` and `/generate` take messages of `rollouts/wire.py`, and in the header
    `x-run-id` which run sends them. Errors are `{"error": str}`: 400 where a message is at fault, 413 where it is
    larger than `limit` bytes, 500 where vLLM or the other side of a group is. `GET /health` says what it does, and for
    which run.
    """
    from fastapi import FastAPI, Response
    from fastapi.concurrency import run_in_threadpool
    from fastapi.responses import JSONResponse

    app = FastAPI(title='vLLM rollouts')
    app.add_middleware(Guarded, limit=limit)

    async def generated(message: bytes, run: str) -> bytes:
        # No thread waits for it: there may be more requests than those that there are for all.
        return pack_generated(await asyncio.wrap_future(await run_in_threadpool(served.generate, message, run)))

    async def answered(work: Callable[[bytes, str], Awaitable[Any]], request: Request) -> Response:
        message = await request.body()
        try:
            found = await work(message, request.headers.get(RUN_HEADER, ''))
        except ValidationError as error:
            return JSONResponse({'error': problems_of(error)}, status_code=BAD_REQUEST)
        except (SampleError, RequestError) as error:
            return JSONResponse({'error': str(error)}, status_code=BAD_REQUEST)
        except AlignAnythingError as error:
            logger.error('%s: %s', type(error).__name__, error)
            return JSONResponse({'error': str(error)}, status_code=SERVER_ERROR)
        return Response(found) if isinstance(found, bytes) else JSONResponse(found)

    @app.get('/health')
    async def health() -> dict[str, Any]:  # Not in a thread: those may all wait for their turn.
        return served.health()

    # Added by hand: their annotations are imported where they are used, and FastAPI would look for them here.
    short = {'/group': served.join, '/weights': served.take, '/media': served.hold}
    works = {path: partial(run_in_threadpool, work) for path, work in short.items()}
    for path, work in {**works, '/generate': generated}.items():
        app.router.add_route(path, partial(answered, work), methods=['POST'])
    return app


def serve(
    host: Annotated[str, typer.Option(help='Address to listen at; 0.0.0.0 lets other machines in.')] = '127.0.0.1',
    port: Annotated[int, typer.Option(min=1, max=65535, help='Port to listen at.')] = 8000,
    trust_remote_code: Annotated[
        bool, typer.Option(help='Lets runs ask for models that bring their own code.')
    ] = False,
    group_timeout: Annotated[
        float, typer.Option(min=1, help='Seconds to wait for members of a group, and for each tensor that it sends.')
    ] = GROUP_SECONDS,
    max_body_mib: Annotated[int, typer.Option(min=1, help='MiB of the largest message.')] = BODY_MIB,
    tensor_parallel_size: Annotated[
        int, typer.Option(min=1, help='Devices that a copy of the model is split over.')
    ] = 1,
    data_parallel_size: Annotated[
        int, typer.Option(min=1, help='Copies of the model, each on devices of its own.')
    ] = 1,
) -> None:
    """Generate responses for online runs, with the weights that they hand over."""
    with bound_socket(host, port) as bound:
        try:
            import uvicorn  # noqa: F401
            import vllm  # noqa: F401

            limit = max_body_mib * MEBIBYTE
            parallel = {'split': tensor_parallel_size, 'copies': data_parallel_size}
            served = Served(trust_remote_code, group_timeout, limit, **parallel)
            app = make_app(served, limit)
        except ImportError as error:
            raise SettingsError([f"the server needs {error.name}: pip install 'align-anything[vllm,serve]'"]) from error
        logger.info('vLLM generates at http://%s:%d', host, port)
        try:
            serve_app(app, bound)
        finally:
            served.close()


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the server. An error that is the user's to mend is printed without a traceback and ends with code 2."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(serve)
    try:
        app(args=None if argv is None else list(argv), prog_name='python -m align_anything.rollouts.vllm_server')
    except AlignAnythingError as error:
        logger.error('%s:\n%s', type(error).__name__, error)
        sys.exit(USER_ERROR)


if __name__ == '__main__':
    main()
