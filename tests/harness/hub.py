"""A small hub on localhost, of what huggingface_hub asks of the real one to upload a model."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

TOKEN = 'hf_' + 'a1B2c3D4e5' * 4
OID = '0' * 40


@dataclass
class Repo:
    """A repository: whether it is private, its files, and the messages of its commits."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)


@dataclass
class FakeHub:
    """What the hub holds, and each request it got: method, path and who asked."""

    url: str = ''
    repos: dict[str, Repo] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    fails: dict[str, int] = field(default_factory=dict)
    """The status with which requests fail whose path has a text."""


@contextmanager
def fake_hub(monkeypatch: pytest.MonkeyPatch, token: str | None = TOKEN) -> Iterator[FakeHub]:
    """Runs the hub as long as the context lasts; clients of this process are sent to it, with the token."""
    from huggingface_hub import constants

    hub = FakeHub()
    server = ThreadingHTTPServer(('127.0.0.1', 0), type('Handler', (Handler,), {'hub': hub}))
    hub.url = f'http://127.0.0.1:{server.server_port}'
    monkeypatch.setattr(constants, 'ENDPOINT', hub.url)
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(constants, 'HF_HUB_DISABLE_XET', True)
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    monkeypatch.delenv('HF_TOKEN', raising=False)
    if token is not None:
        monkeypatch.setenv('HF_TOKEN', token)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class Handler(BaseHTTPRequestHandler):
    """Answers for a hub."""

    hub: FakeHub
    protocol_version = 'HTTP/1.1'

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def do_GET(self) -> None:  # noqa: N802
        self._serve('GET')

    def do_POST(self) -> None:  # noqa: N802
        self._serve('POST')

    def do_PUT(self) -> None:  # noqa: N802
        self._serve('PUT')

    def _serve(self, method: str) -> None:
        body = self._body()
        path = self.path.partition('?')[0]
        self.hub.requests.append((method, path, self.headers.get('authorization')))
        failing = next((status for text, status in self.hub.fails.items() if text in path), None)
        if failing is not None:
            self._answer(failing, {'error': 'the fake hub was told to fail'})
        elif path.startswith('/blobs/'):
            self.hub.blobs[path.removeprefix('/blobs/')] = body
            self._answer(200, {})
        elif self.headers.get('authorization') != f'Bearer {TOKEN}':
            self._answer(401, {'error': 'Invalid username or password.'})
        else:
            self._answer(*self._do(method, path, body))

    def _do(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        if path == '/api/repos/create':
            return self._create(json.loads(body))
        if path == '/api/validate-yaml':
            return 200, {'errors': [], 'warnings': []}
        if path.endswith('.git/info/lfs/objects/batch'):
            return 200, {'objects': [self._place(item) for item in json.loads(body)['objects']]}
        name = '/'.join(path.removeprefix('/api/models/').split('/')[:2])
        if name not in self.hub.repos:
            return 404, {'error': 'Repository not found'}
        if '/preupload/' in path:
            modes = [self._mode(item['path']) for item in json.loads(body)['files']]
            return 200, {'files': modes}
        if '/commit/' in path:
            return self._commit(name, [json.loads(line) for line in body.splitlines()])
        repo = self.hub.repos[name]
        siblings = [{'rfilename': file} for file in repo.files]
        return 200, {'id': name, 'sha': OID, 'private': repo.private, 'siblings': siblings, 'tags': [], 'downloads': 0}

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        name = '/'.join(filter(None, (asked['organization'] or 'me', asked['name'])))
        found = {'url': f'{self.hub.url}/{name}', 'name': name}
        if name in self.hub.repos:
            return 409, found | {'error': 'You already created this model repo'}
        self.hub.repos[name] = Repo(asked['visibility'] == 'private')
        return 200, found

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> tuple[int, Any]:
        repo = self.hub.repos[name]
        for line in lines:
            own = line['value']
            if line['key'] == 'header':
                repo.commits.append(own['summary'])
            elif line['key'] == 'file':
                repo.files[own['path']] = base64.b64decode(own['content'])
            elif line['key'] == 'lfsFile':
                repo.files[own['path']] = self.hub.blobs[own['oid']]
            else:
                assert line['key'] == 'deletedFile'
                del repo.files[own['path']]
        return 200, {'commitUrl': f'{self.hub.url}/{name}/commit/{OID}', 'commitOid': OID}

    def _mode(self, path: str) -> dict[str, Any]:
        return {
            'path': path,
            'uploadMode': 'lfs' if path.endswith(('.safetensors', '.gguf')) else 'regular',
            'shouldIgnore': False,
            'oid': None,
        }

    def _place(self, item: dict[str, Any]) -> dict[str, Any]:
        return {**item, 'actions': {'upload': {'href': f'{self.hub.url}/blobs/{item["oid"]}'}}}

    def _body(self) -> bytes:
        if self.headers.get('transfer-encoding') != 'chunked':
            return self.rfile.read(int(self.headers.get('content-length') or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b''.join(chunks)

    def _answer(self, status: int, content: Any) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header('content-type', 'application/json')
        self.send_header('content-length', str(len(text)))
        self.end_headers()
        self.wfile.write(text)
