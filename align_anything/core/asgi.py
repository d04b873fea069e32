"""What every server of ours does with connections and requests: limits, and errors of one form."""

from __future__ import annotations

import asyncio
import errno
import json
import signal
import socket
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from typing import Any

from align_anything.core.errors import SettingsError
from align_anything.core.logging import get_logger

logger = get_logger(__name__)

Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
Application = Callable[[Event, Receive, Send], Awaitable[None]]
ErrorForm = Callable[[int, Any], Any]
"""Makes the JSON body of an error out of its status and what is said of it: a text, or what the application said."""

TOO_LARGE, SERVER_ERROR, ERRORS = 413, 500, 400
MEBIBYTE = 2**20
HEAD_SECONDS = 20.0
"""How long the head of a request may take to arrive."""
SILENT_SECONDS, PROBE_SECONDS, PROBES = 60, 15, 4
"""After how much silence a peer is asked whether it is still there, how often, and how many times at most."""
UNREAD_SECONDS = 120
"""How long a peer may leave unread what was sent to it."""


def bound_socket(host: str, port: int) -> socket.socket:
    """Returns a socket with the address that a server will listen at, taken before anything slow is loaded.

    Raises SettingsError when the port is in use, or the address cannot be had.
    """
    bound = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        # A server that ended a moment ago leaves connections behind, which are no reason to wait.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _give_up_dead_peers(bound)
        bound.bind(address)
    except OSError as error:
        if bound is not None:
            bound.close()
        if error.errno == errno.EADDRINUSE:
            problem = f'port {port} is in use on {host}: choose another --port, or end what listens there.'
        else:
            problem = f'cannot listen at {host}:{port}: {error.strerror}. Choose another --host or --port.'
        raise SettingsError([problem]) from error
    return bound


def serve_app(app: Application, bound: socket.socket, **settings: Any) -> None:
    """Serves an application at a bound socket until SIGTERM or Ctrl-C, and then finishes what runs. Needs uvicorn.

    `settings` are those of uvicorn.
    """
    import uvicorn

    with suppress(KeyboardInterrupt), _interrupted_by_sigterm():
        uvicorn.Server(server_config(app, **settings)).run(sockets=[bound])


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Lets SIGTERM end what runs as Ctrl-C does; uvicorn, when it is done, would end the process by it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def server_config(app: Application, head_seconds: float = HEAD_SECONDS, **settings: Any) -> Any:
    """Returns the `uvicorn.Config` of a server that drops connections whose request takes too long to begin.

    `settings` are further ones of uvicorn.
    """
    import h11
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Impatient(H11Protocol):
        """Waits for the head of a request so long and no longer; uvicorn itself would wait for ever."""

        due: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._await_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._await_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget()
            super().connection_lost(exc)

        def _await_head(self) -> None:
            if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
                self._forget()
            elif self.due is None:
                self.due = self.loop.call_later(head_seconds, self.transport.abort)

        def _forget(self) -> None:
            if self.due is not None:
                self.due.cancel()
                self.due = None

    return uvicorn.Config(app, http=Impatient, ws='none', log_level='warning', **settings)


def _give_up_dead_peers(bound: socket.socket) -> None:
    """Lets the kernel end connections whose peer is gone or reads nothing; accepted sockets inherit it."""
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SILENT_SECONDS)
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_SECONDS)
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * UNREAD_SECONDS)


def plain_error(status: int, said: Any) -> dict[str, str]:
    """Returns the body of an error as `{"error": str}`."""
    return {'error': said if isinstance(said, str) else json.dumps(said)}


class Guarded:
    """An ASGI application behind a limit, whose errors all have one form.

    A body past the limit is answered with 413 and read no further. Errors of the framework, such as 404 and 405, keep
    their status and say why under `error`. An exception that nobody caught is answered with 500 and its class, and the
    log says where it was raised and no more: its message may quote what was sent.

    Args:
        app: the application.
        limit: bytes of the largest body.
        form: makes the body of an error, `{"error": str}` by default.
    """

    def __init__(self, app: Application, limit: int, form: ErrorForm = plain_error) -> None:
        self.app, self.limit, self.form = app, limit, form

    async def __call__(self, scope: Event, receive: Receive, send: Send) -> None:
        """Answers one request; passes on what is none."""
        if scope['type'] != 'http':
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(receive, send, self.limit, self.form)
        length = dict(scope['headers']).get(b'content-length', b'0')
        if length.isdigit() and int(length) > self.limit:
            await exchange.refuse()
            return
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except Exception as error:
            if exchange.refused:
                return  # an application that was reading the body
            if exchange.begun:
                raise
            frame = traceback.extract_tb(error.__traceback__)[-1]
            place = f'{frame.filename}:{frame.lineno}'
            logger.error('%s %s failed with %s at %s', scope['method'], scope['path'], type(error).__name__, place)
            await exchange.answer(SERVER_ERROR, f'{type(error).__name__} in the server; its log says where.')


class _Exchange:
    """One request and its answer."""

    def __init__(self, receive: Receive, send: Send, limit: int, form: ErrorForm) -> None:
        self._receive, self._send, self._limit, self._form = receive, send, limit, form
        self._read = 0
        self._failed: Event | None = None
        self._reason = b''
        self.refused = False
        self.begun = False

    async def receive(self) -> Event:
        event = await self._receive()
        self._read += len(event.get('body', b''))
        if self._read <= self._limit:
            return event
        if not self.refused:
            await self.refuse()
        # What the application says of half a body is not sent any more.
        return {'type': 'http.disconnect'}

    async def send(self, event: Event) -> None:
        if self.refused:
            return
        if event['type'] == 'http.response.start' and event['status'] >= ERRORS:
            self._failed = event
        elif self._failed is None:
            self.begun = True
            await self._send(event)
        else:
            self._reason += event.get('body', b'')
            if not event.get('more_body'):
                await self.answer(self._failed['status'], _said(self._reason), self._failed['headers'])

    async def refuse(self) -> None:
        self.refused = True
        await self.answer(TOO_LARGE, f'the body is larger than the {self._limit} bytes that this server takes.')

    async def answer(self, status: int, said: Any, headers: Any = ()) -> None:
        """Sends an error."""
        if self.begun:
            return
        self.begun = True
        body = json.dumps(self._form(status, said)).encode()
        kept = [(name, value) for name, value in headers if name.lower() not in (b'content-length', b'content-type')]
        own = [(b'content-type', b'application/json'), (b'content-length', str(len(body)).encode())]
        await self._send({'type': 'http.response.start', 'status': status, 'headers': [*kept, *own]})
        await self._send({'type': 'http.response.body', 'body': body})


def _said(body: bytes) -> Any:
    """What an error says, in whatever form."""
    try:
        said = json.loads(body)
    except ValueError:
        return body.decode(errors='replace')
    return said.get('error', said.get('detail', said)) if isinstance(said, dict) else said
