"""HTML files that the page shows in frames, and what browsers are allowed to do with all that it sends."""

from __future__ import annotations

import asyncio
import hashlib
from html import escape
from pathlib import Path

from align_anything.core.asgi import Application, Event, Receive, Send

ADDRESS = '/pages'
OWN = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; frame-src 'self'; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'self'"
)
"""What the page itself may load: nothing from elsewhere."""
FRAMED = "sandbox; default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
"""What reports in frames may: show what is in them."""
ELSEWHERE = ('/gradio_api/proxy=', '/gradio_api/file=http')
"""Addresses by which the server would fetch others for a browser."""
FORBIDDEN = 403


class Pages:
    """Files that may be shown, by names that say nothing of them; others cannot be asked for."""

    def __init__(self) -> None:
        self._files: dict[str, Path] = {}

    def address(self, file: Path) -> str:
        """Returns where a file may be fetched, which changes whenever it does."""
        name = hashlib.sha256(str(file).encode()).hexdigest()[:24]
        self._files[name] = file
        return f'{ADDRESS}/{name}?{file.stat().st_mtime_ns}'

    def frame(self, file: Path, height: str = '75vh') -> str:
        """Returns the HTML of a frame that shows a file."""
        address = escape(self.address(file))
        return f'<iframe class="report" sandbox style="height:{height}" src="{address}" title="{escape(file.name)}">'

    def find(self, name: str) -> Path | None:
        """Returns the file of a name, None where there is none."""
        file = self._files.get(name)
        return file if file is not None and file.is_file() else None


class Walls:
    """An ASGI application whose answers load nothing from elsewhere, and that pages from elsewhere cannot ask.

    Args:
        app: the application.
    """

    def __init__(self, app: Application) -> None:
        self._app = app

    async def __call__(self, scope: Event, receive: Receive, send: Send) -> None:
        """Answers one request; passes on what is none."""
        if scope['type'] != 'http':
            await self._app(scope, receive, send)
            return
        if self._is_from_elsewhere(scope) or scope['path'].startswith(ELSEWHERE):
            await send({'type': 'http.response.start', 'status': FORBIDDEN, 'headers': [(b'content-length', b'0')]})
            await send({'type': 'http.response.body', 'body': b''})
            return

        open_ended = False

        async def guarded(event: Event) -> None:
            nonlocal open_ended
            open_ended = event['type'] == 'http.response.start' or event.get('more_body', False)
            if event['type'] == 'http.response.start':
                policy = FRAMED if scope['path'].startswith(f'{ADDRESS}/') else OWN
                own = [(b'content-security-policy', policy.encode()), (b'referrer-policy', b'no-referrer')]
                event = {**event, 'headers': [*event.get('headers', ()), *own, (b'x-content-type-options', b'nosniff')]}
            await send(event)

        try:
            await self._app(scope, receive, guarded)
        except asyncio.CancelledError:
            # The server ends, and what the page listens to has no end of its own.
            if open_ended:
                await send({'type': 'http.response.body', 'body': b''})

    def _is_from_elsewhere(self, scope: Event) -> bool:
        """Whether a page of another address sent it; browsers say so, programs say nothing."""
        headers = dict(scope['headers'])
        origin = headers.get(b'origin')
        return origin is not None and origin.partition(b'://')[2] != headers.get(b'host', b'')
