"""`align-anything serve-environment`: an environment for runs elsewhere, in worker processes behind HTTP."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from align_anything.configs.yaml_text import parse_yaml
from align_anything.core.asgi import Guarded, bound_socket, serve_app
from align_anything.core.errors import SettingsError, WorldError
from align_anything.core.logging import get_logger
from align_anything.environments.base import capacity_of, checked_kwargs
from align_anything.environments.hosts import Fault, Lost
from align_anything.environments.remote import GONE, Told
from align_anything.environments.trying import offered_by
from align_anything.environments.wire import MOST_BYTES, actions_out, from_bytes, to_bytes
from align_anything.environments.workers import Tenant, Workers
from align_anything.serve.door import Door, Keys, is_local, read_keys
from align_anything.serve.errors import BAD_REQUEST, OVERLOADED, UNSUPPORTED, error_body, json_answer, openai_form

if TYPE_CHECKING:
    from fastapi import FastAPI, Request
    from fastapi.responses import Response as Answer

logger = get_logger(__name__)

IDLE_SECONDS = 3600.0
"""After how long an environment that nobody asks any more is closed: its run has ended, or was killed."""
MOST = 8192
"""Environments that may be open."""


class Message(BaseModel):
    """What a run asks: a call, of the environment of an id that it has chosen."""

    model_config = ConfigDict(extra='ignore')

    id: str = Field(min_length=8, max_length=64)
    call: Literal['reset', 'step', 'score', 'close']
    rows: list[dict[str, Any]] = []
    seeds: list[int] = []
    said: list[dict[str, Any] | None] = []
    number: NonNegativeInt = 0


@dataclass
class _Open:
    tenant: Tenant
    lane: int
    used: float = field(default_factory=time.monotonic)


class Served:
    """An environment that is served. It is asked from any thread.

    Args:
        name: the environment, and its arguments.
        workers: the processes for it.
    """

    def __init__(self, name: str, kwargs: Mapping[str, Any], workers: Workers, idle: float = IDLE_SECONDS) -> None:
        self.name, self._kwargs, self._workers, self._idle = name, dict(kwargs), workers, idle
        self._open: dict[str, _Open] = {}
        self._lock = threading.Lock()

    def ask(self, message: Message) -> dict[str, Any]:
        """Returns what the process of the environment answers.

        Raises Lost where the environment is gone, Fault where it fails, and WorldError where too many are open.
        """
        own = self._opened(message.id) if message.call == 'reset' else self._open.get(message.id)
        if own is None:
            raise Lost
        own.used = time.monotonic()
        asked = message.model_dump()
        try:
            return own.tenant.ask({**asked, 'name': self.name, 'kwargs': self._kwargs})
        finally:
            if message.call == 'close':
                self._open.pop(message.id, None)

    def _opened(self, name: str) -> _Open:
        self._sweep()
        with self._lock:
            if len(self._open) >= MOST:
                raise WorldError(f'{MOST} environments are open here already.')
            lanes = [own.lane for own in self._open.values()]
            lane = min(range(self._workers.lanes), key=lanes.count)
            return self._open.setdefault(name, _Open(Tenant(self._workers.workers[lane]), lane))

    def _sweep(self) -> None:
        """Closes what nobody asks any more."""
        now = time.monotonic()
        with self._lock:
            old = [name for name, own in self._open.items() if now - own.used > self._idle]
            gone = [(name, self._open.pop(name)) for name in old]
        for name, own in gone:
            try:
                own.tenant.ask({'id': name, 'call': 'close'})
            except (Lost, Fault) as error:
                logger.warning('an environment that nobody asked failed to close: %r', error)


def make_app(served: Served, told: Told, keys: Keys | None = None, host: str = '127.0.0.1') -> FastAPI:
    """Returns the web application: `GET /environment` tells of the environment, `POST /ask` takes messages."""
    from fastapi import FastAPI, Response
    from fastapi.concurrency import run_in_threadpool

    app = FastAPI(title='environment', docs_url=None, redoc_url=None, openapi_url=None)

    async def environment(_: Request) -> Answer:
        return json_answer(told.model_dump())

    async def health(_: Request) -> Answer:
        return json_answer({'status': 'ok'})

    async def ask(request: Request) -> Answer:
        if request.headers.get('content-type', '').partition(';')[0].strip().lower() != 'application/json':
            return json_answer(error_body(UNSUPPORTED, 'the content type must be application/json.'), UNSUPPORTED)
        try:
            message = Message.model_validate(from_bytes(await request.body()))
        except ValidationError as error:
            problem = error.errors()[0]
            told_of = f'{".".join(map(str, problem["loc"])) or "the body"}: {problem["msg"]}'
            return json_answer(error_body(BAD_REQUEST, told_of), BAD_REQUEST)
        except WorldError as error:
            return json_answer(error_body(BAD_REQUEST, str(error)), BAD_REQUEST)
        try:
            answer = await run_in_threadpool(served.ask, message)
        except Lost:
            return json_answer(error_body(GONE, 'this environment is gone.'), GONE)
        except Fault as fault:
            answer = {'error': fault.reason, 'trace': fault.trace}
        except WorldError as error:
            return json_answer(error_body(OVERLOADED, str(error)), OVERLOADED)
        return Response(to_bytes(answer), media_type='application/json')

    app.router.add_route('/environment', environment, methods=['GET'])
    app.router.add_route('/health', health, methods=['GET'])
    app.router.add_route('/ask', ask, methods=['POST'])
    # The last one added sees a request first.
    app.add_middleware(Door, keys=keys or Keys([]), host=host)
    app.add_middleware(Guarded, limit=MOST_BYTES, form=openai_form)
    return app


def told_of(name: str, kwargs: Mapping[str, Any], lanes: int, seconds: float) -> Told:
    """Returns what a server tells of an environment, made once and closed. Raises WorldError as making it does."""
    offered = offered_by(name, kwargs)
    return Told(
        environment=name,
        tools=offered.tools,
        rewards=offered.rewards,
        actions=actions_out(offered.actions),
        capacity=capacity_of(name),
        lanes=lanes,
        timeout=seconds,
    )


def serve_environment(
    name: str,
    kwargs: str,
    workers: int | None,
    timeout: float,
    host: str,
    port: int,
    api_key_file: str | None,
    devices: bool,
) -> None:
    """Serves an environment until SIGTERM or Ctrl-C. Raises SettingsError and WorldError before it listens."""
    try:
        given = parse_yaml(kwargs)
    except ValueError as error:
        raise SettingsError([f'--kwargs: {error}']) from error
    if not isinstance(given, dict):
        raise SettingsError([f'--kwargs: {kwargs!r} names no arguments; write for instance {{guesses: 3}}.'])
    checked = checked_kwargs(name, given)
    lanes = workers or os.cpu_count() or 1
    told = told_of(name, checked, lanes, timeout)
    keys = Keys(read_keys(api_key_file))
    if not keys and not is_local(host):
        logger.warning('no API key: whoever reaches %s:%d is answered; --api_key_file asks for one.', host, port)
    with bound_socket(host, port) as bound:
        try:
            import fastapi  # noqa: F401
            import uvicorn  # noqa: F401
        except ImportError as error:
            problem = f"the server needs {error.name}: pip install 'align-anything[serve]'"
            raise SettingsError([problem]) from error
        processes = Workers(lanes, timeout, devices=devices)
        logger.info('%s at http://%s:%d', name, host, port)
        try:
            serve_app(make_app(Served(name, checked, processes), told, keys, host), bound)
        finally:
            processes.close()
