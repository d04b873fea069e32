"""URLs of media: public addresses alone, and no way around that."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from align_anything.serve import fetching
from align_anything.serve.errors import RequestError
from align_anything.serve.fetching import fetch

LIMIT = 1000


class Site(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == '/moved':
            self.send_response(302)
            self.send_header('Location', 'http://169.254.169.254/latest')
            self.end_headers()
        elif self.path == '/slow':
            self.send_response(200)
            self.end_headers()
            self.wfile.flush()
            for _ in range(8):
                self.wfile.write(b'x')
                self.wfile.flush()
                threading.Event().wait(0.1)
        else:
            self.send_response(404 if self.path == '/missing' else 200)
            self.end_headers()
            self.wfile.write(b'x' * (2 * LIMIT if self.path == '/large' else 10))

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def site() -> Iterator[int]:
    server = HTTPServer(('127.0.0.1', 0), Site)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_port
    server.shutdown()


@pytest.mark.parametrize(
    'host',
    [
        '127.0.0.1',
        'localhost',
        '0.0.0.0',
        '10.1.2.3',
        '172.16.0.1',
        '192.168.1.1',
        '169.254.169.254',
        '100.64.0.1',
        '[::1]',
        '[fd00::1]',
        '[fe80::1]',
        '[::ffff:127.0.0.1]',
        '[64:ff9b::7f00:1]',
        '[2002:7f00:1::]',
        '224.0.0.1',
        '2130706433',
        '0x7f.1',
    ],
)
def test_no_address_that_is_not_public(host: str) -> None:
    with pytest.raises(RequestError) as caught:
        fetch(f'http://{host}/a.png', LIMIT)
    assert caught.value.code == 'url_refused' and caught.value.status == 400


@pytest.mark.parametrize(
    'url',
    [
        'file:///etc/hostname',
        'ftp://example.org/a',
        'http://user:word@example.org/a',
        'http:///a',
        'http://example.org/a b',
        'http://example.org/\r\nHost: x',
        'http://[::1/a',
        'http://example.org:99999/a',
        'gopher://x',
    ],
)
def test_no_other_urls(url: str) -> None:
    with pytest.raises(RequestError, match='none of http or https'):
        fetch(url, LIMIT)


def test_a_name_that_stands_for_a_private_address_beside_a_public_one(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, '', (address, 80)) for address in ('93.184.216.34', '10.0.0.1')]
    monkeypatch.setattr(fetching.socket, 'getaddrinfo', lambda *_, **__: found)
    with pytest.raises(RequestError, match='no public address'):
        fetch('http://example.org/a.png', LIMIT)


def test_what_is_public_is_fetched_and_nothing_else_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    # The one that is looked up is the one that is connected to, whatever the name says a moment later.
    with site() as port:
        monkeypatch.setattr(fetching, '_is_public', lambda text: text == '127.0.0.1')
        base = f'http://127.0.0.1:{port}'
        assert fetch(f'{base}/a.png', LIMIT) == b'x' * 10
        for path, message in (
            ('/moved', 'redirects, which are not followed'),
            ('/missing', 'answers 404'),
            ('/large', f'larger than {LIMIT} bytes'),
        ):
            with pytest.raises(RequestError, match=message):
                fetch(f'{base}{path}', LIMIT)
        with pytest.raises(RequestError, match='takes too long|cannot be fetched'):
            fetch(f'{base}/slow', LIMIT, seconds=0.3)


def test_a_name_is_looked_up_once_and_what_was_looked_at_is_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is public when it is asked for, and this machine's own a moment later."""
    answers, reached = iter(['93.184.216.34', '127.0.0.1']), []

    def resolved(*_: object, **__: object) -> list[tuple[object, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, '', (next(answers), 80))]

    def connect(address: tuple[str, int], **_: object) -> socket.socket:
        reached.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(fetching.socket, 'getaddrinfo', resolved)
    monkeypatch.setattr(fetching.socket, 'create_connection', connect)
    with pytest.raises(RequestError, match='cannot be fetched from rebind.example'):
        fetch('http://rebind.example/a.png', LIMIT)
    assert reached == [('93.184.216.34', 80)] and next(answers) == '127.0.0.1'
