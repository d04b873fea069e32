"""The layer around our servers: a limit to bodies and one form of errors, whatever happens inside."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import socket
import threading
import time
from typing import Any

import pytest

from align_anything.core.asgi import Guarded, bound_socket, serve_app
from align_anything.core.errors import SettingsError


def exchange(app: Any, *chunks: bytes, limit: int = 10, headers: list | None = None) -> tuple[int, Any, list]:
    """The status, what the body says as JSON, and all that was sent."""
    events = [{'type': 'http.request', 'body': chunk, 'more_body': True} for chunk in chunks]
    events.append({'type': 'http.request', 'body': b'', 'more_body': False})
    sent: list[dict] = []

    async def receive() -> dict:
        return events.pop(0)

    async def send(event: dict) -> None:
        sent.append(event)

    scope = {'type': 'http', 'method': 'POST', 'path': '/x', 'headers': headers or []}
    asyncio.run(Guarded(app, limit)(scope, receive, send))
    return sent[0]['status'], json.loads(b''.join(event.get('body', b'') for event in sent)), sent


async def reading(scope: dict, receive: Any, send: Any) -> None:
    """Answers with the length of the body; as a framework does, with an exception when the client goes."""
    length, more = 0, True
    while more:
        event = await receive()
        if event['type'] == 'http.disconnect':
            raise RuntimeError('the client has gone')
        length, more = length + len(event['body']), event['more_body']
    await send({'type': 'http.response.start', 'status': 200, 'headers': []})
    await send({'type': 'http.response.body', 'body': str(length).encode()})


def test_a_body_up_to_the_limit_is_read() -> None:
    assert exchange(reading, b'x' * 4, b'x' * 6)[:2] == (200, 10)


@pytest.mark.parametrize('headers', [[], [(b'content-length', b'11')]], ids=['counted', 'announced'])
def test_a_body_past_the_limit_is_refused_once(headers: list) -> None:
    status, said, sent = exchange(reading, b'x' * 4, b'x' * 7, headers=headers)
    assert status == 413 and said == {'error': 'the body is larger than the 10 bytes that this server takes.'}
    assert [event['type'] for event in sent] == ['http.response.start', 'http.response.body']


@pytest.mark.parametrize(
    ('body', 'reason'),
    [
        (b'{"error": "ours"}', 'ours'),
        (b'{"detail": "Not Found"}', 'Not Found'),
        (b'{"detail": [{"loc": 1}]}', '[{"loc": 1}]'),
        (b'[1]', '[1]'),
        (b'Bad \xff', 'Bad \ufffd'),
        (b'', ''),
    ],
)
def test_errors_keep_their_status_and_get_one_form(body: bytes, reason: str) -> None:
    async def failing(scope: dict, receive: Any, send: Any) -> None:
        headers = [(b'Content-Length', b'99'), (b'allow', b'GET'), (b'content-type', b'text/plain')]
        await send({'type': 'http.response.start', 'status': 405, 'headers': headers})
        await send({'type': 'http.response.body', 'body': body[:5], 'more_body': True})
        await send({'type': 'http.response.body', 'body': body[5:]})

    status, said, sent = exchange(failing)
    assert (status, said) == (405, {'error': reason})
    length = len(sent[1]['body'])
    assert dict(sent[0]['headers']) == {
        b'allow': b'GET',
        b'content-type': b'application/json',
        b'content-length': str(length).encode(),
    }


def test_an_exception_is_told_by_its_class_alone(caplog: pytest.LogCaptureFixture) -> None:
    async def raising(scope: dict, receive: Any, send: Any) -> None:
        raise KeyError('what was sent')

    with caplog.at_level(logging.DEBUG, logger='align_anything'):
        status, said, _ = exchange(raising)
    assert status == 500 and said['error'].startswith('KeyError in the server')
    [told] = caplog.messages
    assert re.fullmatch(r'POST /x failed with KeyError at .*test_asgi\.py:\d+', told)


def test_an_answer_that_breaks_off_is_no_other_answer() -> None:
    async def breaking(scope: dict, receive: Any, send: Any) -> None:
        await send({'type': 'http.response.start', 'status': 200, 'headers': []})
        raise KeyError

    with pytest.raises(KeyError):
        exchange(breaking)


@pytest.mark.parametrize('host', ['127.0.0.1', 'localhost', '0.0.0.0'])
def test_a_port_in_use_is_said(host: str) -> None:
    with socket.create_server(('127.0.0.1', 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(SettingsError, match=f'port {port} is in use on {host}: choose another --port'):
            bound_socket(host, port)
    with bound_socket(host, port) as bound:
        assert bound.getsockname()[1] == port


@pytest.mark.parametrize('host', ['203.0.113.7', 'no.such.host.invalid'])
def test_an_address_that_cannot_be_had_is_said(host: str) -> None:
    with pytest.raises(SettingsError, match=f'cannot listen at {host}:6000: .+ Choose another --host'):
        bound_socket(host, 6000)


def test_a_server_ends_cleanly_by_sigterm() -> None:
    before, cleaned = signal.getsignal(signal.SIGTERM), []

    async def app(scope: dict, receive: Any, send: Any) -> None:
        await send({'type': 'http.response.start', 'status': 200, 'headers': []})
        await send({'type': 'http.response.body', 'body': b'here'})

    def end(address: tuple[str, int]) -> None:
        with socket.create_connection(address, 10) as asking:
            asking.sendall(b'GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n')
            while asking.recv(1000):
                time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    with bound_socket('127.0.0.1', 0) as bound:
        bound.listen()
        thread = threading.Thread(target=end, args=(bound.getsockname(),))
        thread.start()
        try:
            serve_app(app, bound, lifespan='off')
        finally:
            cleaned.append(True)
        thread.join(10)
    # Whoever serves closes what it has behind it, and ends with 0.
    assert cleaned and signal.getsignal(signal.SIGTERM) == before
