"""Who may come in: API keys, and on a machine's own address no page of a browser that has been led astray."""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import os
import re
from collections.abc import Sequence
from pathlib import Path

from align_anything.core.asgi import Application, Event, Receive, Send
from align_anything.core.errors import SettingsError
from align_anything.core.logging import get_logger
from align_anything.serve.errors import UNAUTHORIZED, error_body, json_answer

logger = get_logger(__name__)

KEY_VARIABLE = 'ALIGN_ANYTHING_API_KEY'
FORBIDDEN = 403
OPEN = ('/health', '/api/v1/health')
"""Paths that need no key: they say whether the server lives, and no more."""
LOCAL_NAMES = ('localhost', '127.0.0.1', '[::1]')
OTHERS = 0o077
PORT = re.compile(r':\d*\Z', re.ASCII)
SHORTEST_KEY = 8
CHALLENGES = {b'bearer': 'Bearer', b'basic': 'Basic realm="align-anything"'}
REFUSALS = {
    b'bearer': 'no API key, or a wrong one: send it as Authorization: Bearer KEY.',
    b'basic': 'no password, or a wrong one.',
}


class Keys:
    """API keys, of which only digests are kept."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def allow(self, authorization: bytes, scheme: bytes = b'bearer') -> bool:
        """Tells whether the header is one of the keys in this scheme; takes the same time for every wrong one.

        In the scheme `basic`, which browsers know, the password is the key, and the name may be any.
        """
        found_scheme, _, key = authorization.partition(b' ')
        given = _digest(_password(key) if scheme == b'basic' else key.strip())
        found = [hmac.compare_digest(given, digest) for digest in self._digests]
        return found_scheme.lower() == scheme and any(found)


def read_keys(file: str | None, option: str = '--api_key_file', variable: str = KEY_VARIABLE) -> list[str]:
    """Returns the keys in a file, one a line, which an `option` names, and the one in a variable of the environment.

    Raises SettingsError for a file that cannot be read or holds no key, and for what can be no key.
    """
    found = [os.environ[variable]] if os.environ.get(variable) else []
    if file is not None:
        try:
            path = Path(file)
            lines = [line.strip() for line in path.read_text().splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError([f'{option}: {file} cannot be read: {type(error).__name__}.']) from error
        if not lines:
            raise SettingsError([f'{option}: {file} holds no key; write one on a line of its own.'])
        if path.stat().st_mode & OTHERS:
            logger.warning('%s can be read by other users of this machine: chmod 600 keeps the key yours.', file)
        found += lines
    if any(len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable() or ' ' in key for key in found):
        told = f'{option}: a key (not shown) is not {SHORTEST_KEY} or more printable ASCII characters without blanks.'
        raise SettingsError([told])
    return found


def is_local(host: str) -> bool:
    """Tells whether an address to listen at is this machine's own."""
    if host == 'localhost':
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Door:
    """An ASGI application behind a key.

    Where it listens at a local address, it also refuses requests by other names of the host: a page on the internet
    whose name was pointed at this machine sends its own.

    Args:
        app: the application.
        keys: that are let in; none lets everyone in.
        host: the address that it listens at.
        scheme: how keys are sent: `bearer`, or `basic` as browsers ask a person for them.
    """

    def __init__(self, app: Application, keys: Keys, host: str, scheme: bytes = b'bearer') -> None:
        self._app, self._keys, self._scheme = app, keys, scheme
        self._names = {*LOCAL_NAMES, host} if is_local(host) else None

    async def __call__(self, scope: Event, receive: Receive, send: Send) -> None:
        """Answers one request; passes on what is none."""
        if scope['type'] == 'http' and (refusal := self._refusal(scope)) is not None:
            status, message, code = refusal
            headers = {'WWW-Authenticate': CHALLENGES[self._scheme]} if status == UNAUTHORIZED else None
            answer = json_answer(error_body(status, message, code=code), status, headers=headers)
            await answer(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Event) -> tuple[int, str, str] | None:
        headers = dict(scope['headers'])
        if self._names is not None:
            name = PORT.sub('', headers.get(b'host', b'localhost').decode('latin-1').lower())
            if name not in self._names:
                return FORBIDDEN, 'this server is open to this machine alone, and goes by no such name.', 'wrong_host'
        given = headers.get(b'authorization', b'')
        if not self._keys or scope['path'] in OPEN or self._keys.allow(given, self._scheme):
            return None
        return UNAUTHORIZED, REFUSALS[self._scheme], 'invalid_api_key'


def _password(credentials: bytes) -> bytes:
    try:
        return base64.b64decode(credentials.strip(), validate=True).partition(b':')[2]
    except ValueError:
        return b''


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
