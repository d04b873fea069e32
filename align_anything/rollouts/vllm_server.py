"""vLLM as a server on another device or machine: `python -m align_anything.rollouts.vllm_server --port 8000`.

It loads no weights of its own: a run names its model and hands its weights over, again after each update.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from pydantic import BaseModel, ValidationError
from torch import Tensor

from align_anything.core.errors import AlignAnythingError, ModelError, SampleError, SettingsError
from align_anything.core.logging import get_logger
from align_anything.rollouts.vllm_engine import Engine, VLLMOptions
from align_anything.rollouts.weight_group import Shapes, join_group, receive
from align_anything.rollouts.wire import pack_generated, unpack, unpack_requests

if TYPE_CHECKING:
    from fastapi import FastAPI, Request, Response

logger = get_logger(__name__)

BAD_REQUEST, SERVER_ERROR = 400, 500
USER_ERROR = 2


class Member(BaseModel):
    """What a server must know to join the group of the rank that feeds it."""

    host: str
    port: int
    rank: int
    size: int
    backend: Literal['gloo', 'nccl']


class Chunk(BaseModel):
    """A chunk of the weights: of which model, how vLLM runs, and what the group sends if it is not beside this."""

    model: str
    options: VLLMOptions
    first: bool
    last: bool
    backend: Literal['gloo', 'nccl'] | None
    shapes: Shapes = []


class Served:
    """The one engine of a server. Its methods take messages and may be called from any thread.

    `trust_remote_code` says whether a run may ask for a model that brings its own code.
    """

    def __init__(self, trust_remote_code: bool = False) -> None:
        self._trusts_code = trust_remote_code
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._waiting: dict[str, Tensor] = {}
        self._group: Any = None

    def health(self) -> dict[str, Any]:
        """What runs."""
        return {'status': 'ok', 'model': None if self._engine is None else self._engine.source}

    def join(self, message: bytes) -> dict[str, Any]:
        """Joins the group of the rank that feeds this server."""
        member = Member.model_validate(unpack(message)[0])
        with self._lock:
            self._group = join_group(**member.model_dump())
        return {'rank': member.rank}

    def take(self, message: bytes) -> dict[str, Any]:
        """Takes a chunk of the weights, out of the message or the group; with the last the engine loads them all."""
        record, tensors = unpack(message)
        chunk = Chunk.model_validate(record)
        with self._lock:
            if chunk.backend is not None:
                tensors = receive(self._group, chunk.shapes, chunk.backend)
            if chunk.first:
                self._waiting = {}
                self._engine = self._opened(chunk.model, chunk.options)
            if self._engine is None:
                raise SampleError('the first chunk of these weights was never sent.')
            self._waiting |= tensors
            if chunk.last:
                waiting, self._waiting = self._waiting, {}
                self._engine.load(lambda: iter(waiting.items()))
        return {'weights': len(tensors)}

    def _opened(self, model: str, options: VLLMOptions) -> Engine:
        if options.trust_remote_code and not self._trusts_code:
            raise ModelError('this server runs no code out of checkpoints: start it with --trust-remote-code.')
        if self._engine is None:
            return Engine(model, options)
        if (self._engine.source, self._engine.options) != (model, options):
            raise ModelError(
                f'this server generates with {self._engine.source}, and with other options: start it anew for {model}.'
            )
        return self._engine

    def generate(self, message: bytes) -> bytes:
        """Generates for the requests in a message."""
        requests = unpack_requests(message)
        with self._lock:
            if self._engine is None:
                raise ModelError('no run has handed weights to this server yet.')
            return pack_generated(self._engine.generate(requests))


def make_app(served: Served) -> FastAPI:
    """Returns the web application.

    `POST /group`, `/weights` and `/generate` take messages of `rollouts/wire.py`; 400 with `{"error": str}` where a
    message is at fault, 500 where vLLM is. `GET /health` says which model it generates with.
    """
    from fastapi import FastAPI, Response
    from fastapi.concurrency import run_in_threadpool
    from fastapi.responses import JSONResponse

    app = FastAPI(title='vLLM rollouts')

    async def answered(work: Callable[[bytes], Any], request: Request) -> Response:
        message = await request.body()
        try:
            found = await run_in_threadpool(work, message)
        except (SampleError, ValidationError) as error:
            return JSONResponse({'error': str(error)}, status_code=BAD_REQUEST)
        except AlignAnythingError as error:
            logger.error('%s: %s', type(error).__name__, error)
            return JSONResponse({'error': str(error)}, status_code=SERVER_ERROR)
        return Response(found) if isinstance(found, bytes) else JSONResponse(found)

    @app.get('/health')
    def health() -> dict[str, Any]:
        return served.health()

    # Added by hand: their annotations are imported where they are used, and FastAPI would look for them here.
    for path, work in {'/group': served.join, '/weights': served.take, '/generate': served.generate}.items():
        app.router.add_route(path, partial(answered, work), methods=['POST'])
    return app


def serve(
    host: Annotated[str, typer.Option(help='Address to listen at; 0.0.0.0 lets other machines in.')] = '127.0.0.1',
    port: Annotated[int, typer.Option(min=1, max=65535, help='Port to listen at.')] = 8000,
    trust_remote_code: Annotated[
        bool, typer.Option(help='Lets runs ask for models that bring their own code.')
    ] = False,
) -> None:
    """Generate responses for online runs, with the weights that they hand over."""
    try:
        import uvicorn
        import vllm  # noqa: F401

        app = make_app(Served(trust_remote_code))
    except ImportError as error:
        raise SettingsError([f"the server needs {error.name}: pip install 'align-anything[vllm,serve]'"]) from error
    logger.info('vLLM generates at http://%s:%d', host, port)
    uvicorn.run(app, host=host, port=port, log_level='warning')


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
