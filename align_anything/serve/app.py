"""The web application of a server: which path is answered by what."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from align_anything.core.asgi import Guarded
from align_anything.core.errors import AlignAnythingError
from align_anything.core.logging import get_logger
from align_anything.serve import chat_completions, errors, made_media, omega, rewards
from align_anything.serve.door import Door
from align_anything.serve.errors import RequestError, json_answer, openai_form
from align_anything.serve.metrics import Metrics, content_type
from align_anything.serve.server import Server

if TYPE_CHECKING:
    from fastapi import FastAPI, Request

logger = get_logger(__name__)

T = TypeVar('T')


def make_app(server: Server) -> FastAPI:
    """Returns the web application of a server; docs/serving.md says what it answers."""
    from fastapi import FastAPI
    from fastapi.responses import Response as Answer

    app = FastAPI(title='align-anything', docs_url=None, redoc_url=None, openapi_url=None)
    handlers = {
        '/v1/chat/completions': chat_completions.answer,
        '/v1/images/generations': made_media.images,
        '/v1/audio/speech': made_media.speech,
        '/v1/rewards': rewards.rewards,
        '/api/v1/v2t': omega.v2t,
        '/api/v1/v2v': omega.v2v,
    }

    @app.exception_handler(RequestError)
    def refuse(_: Any, error: RequestError) -> Answer:
        return json_answer(error.body, error.status, headers=error.headers)

    @app.exception_handler(AlignAnythingError)
    def failed(_: Any, error: AlignAnythingError) -> Answer:
        # What it says may quote what was sent, which is nobody's business who reads the log.
        logger.error('a request failed with %s', type(error).__name__)
        return json_answer(errors.error_body(errors.SERVER_ERROR, str(error)), errors.SERVER_ERROR)

    for path, handler in handlers.items():
        app.router.add_route(path, _bound(handler, server), methods=['POST'])

    async def models(_: Request) -> Answer:
        return json_answer({'object': 'list', 'data': _models(server)})

    async def model(request: Request) -> Answer:
        name = request.path_params['name']
        found = next((record for record in _models(server) if record['id'] == name), None)
        if found is None:
            server.check_model(name, server.name if server.answers else server.judge.name)
        return json_answer(found)

    async def health(_: Request) -> Answer:
        lives = server.scheduler is None or server.scheduler.works
        told = {'status': 'ok' if lives else 'failed', 'models': [record['id'] for record in _models(server)]}
        return json_answer(told, 200 if lives else errors.OVERLOADED)

    async def omega_health(_: Request) -> Answer:
        told = {'model_loaded': server.answers, 'error': None}
        return json_answer({'status': 'healthy', 'initialization_status': told})

    async def metrics(_: Request) -> Answer:
        return Answer(server.metrics.text(), media_type=content_type())

    asked = {
        '/v1/models': models,
        '/v1/models/{name:path}': model,
        '/health': health,
        '/api/v1/health': omega_health,
        '/metrics': metrics,
    }
    for path, handler in asked.items():
        app.router.add_route(path, handler, methods=['GET'])

    # The last one added sees a request first.
    app.add_middleware(Door, keys=server.keys, host=server.host)
    app.add_middleware(Guarded, limit=server.limits.body, form=openai_form)
    app.add_middleware(Counted, metrics=server.metrics, paths=[*handlers, '/v1/models', '/health', '/metrics'])
    return app


class Counted:
    """An ASGI application whose requests are counted, by the paths that it has."""

    def __init__(self, app: Any, metrics: Metrics, paths: Sequence[str]) -> None:
        self._app, self._metrics, self._paths = app, metrics, frozenset(paths)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Passes on what comes, and counts requests at their end."""
        if scope['type'] != 'http':
            await self._app(scope, receive, send)
            return
        begun, status = time.monotonic(), errors.SERVER_ERROR

        async def sent(event: Any) -> None:
            nonlocal status
            status = event.get('status', status)
            await send(event)

        try:
            await self._app(scope, receive, sent)
        finally:
            path = scope['path'] if scope['path'] in self._paths else 'other'
            self._metrics.request(path, status, time.monotonic() - begun)


def _bound(handler: Callable[..., Awaitable[T]], server: Server) -> Callable[..., Awaitable[T]]:
    async def handle(request: Request) -> T:
        return await handler(server, request)

    return handle


def _models(server: Server) -> list[dict[str, Any]]:
    found = []
    if server.answers:
        told = {'reads': sorted(server.answerer.reads), 'emits': sorted(server.answerer.emits)}
        found.append({'id': server.name, **told})
    if server.judge is not None:
        found.append({'id': server.judge.name, 'reads': sorted(server.judge.reads), 'emits': [], 'judges': True})
    return [{**record, 'object': 'model', 'created': server.created, 'owned_by': 'align-anything'} for record in found]
