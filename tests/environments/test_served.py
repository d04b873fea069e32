"""Environments behind HTTP: a server of ours, what it refuses, and servers that are none."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
import uvicorn

from align_anything.configs.environment import EnvironmentCfgs
from align_anything.core.actions import ActionSpace
from align_anything.core.asgi import server_config
from align_anything.core.errors import SettingsError, WorldError
from align_anything.environments import Said
from align_anything.environments import remote as remote_module
from align_anything.environments.hosts import Lost
from align_anything.environments.pool import EpisodeFailed, Pool
from align_anything.environments.remote import Remote, Told
from align_anything.environments.workers import Workers
from align_anything.serve.door import Keys
from align_anything.serve.environments import Message, Served, make_app, serve_environment, told_of
from align_anything.trainers.runs.acting import require_same_actions
from tests.environments.one import One
from tests.environments.test_workers import AWKWARD, SECONDS, text

Serve = Callable[[Any], str]


@pytest.fixture(scope='module')
def serve() -> Iterator[Serve]:
    """Serves applications; returns their addresses."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def serve(app: Any) -> str:
        bound = socket.create_server(('127.0.0.1', 0))
        server = uvicorn.Server(server_config(app))
        thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
        thread.start()
        running.append((server, thread))
        return f'http://127.0.0.1:{bound.getsockname()[1]}'

    yield serve
    for server, thread in running:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope='module')
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('served')
    (folder / 'own.py').write_text(AWKWARD)
    return folder


@pytest.fixture(scope='module')
def workers(own: Path) -> Iterator[Workers]:
    made = Workers(2, SECONDS)
    first = One(Pool('number_game', host=made), {}, 0)
    first.begin()
    first.close()
    yield made
    made.close()


def served(own: Path, workers: Workers, how: str = '', name: str = 'Awkward', **more: Any) -> Any:
    name, kwargs = f'{own}/own.py:{name}', {'folder': str(own), 'how': how, **more}
    return make_app(Served(name, kwargs, workers), told_of(name, kwargs, workers.lanes, SECONDS))


def test_episodes_at_a_server(own: Path, workers: Workers, serve: Serve) -> None:
    url = serve(served(own, workers))
    pool = Pool(url, host=Remote(url))
    seats = pool.open([{}] * 4, [4, 5, 6, 7])
    assert [text(begun.messages)[:7] for begun in pool.begin(seats)] == [f'Begin {seed}' for seed in (4, 5, 6, 7)]
    pool.step(seats, [Said(str(number)) for number in range(4)])
    answers = pool.step(seats, [Said('b')] * 4)
    assert [text(answer.messages) for answer in answers] == ['0 b', '1 b', '2 b', '3 b']
    assert pool.score(seats) == [0.5] * 4 and answers[0].step.info == {'success': True}
    pool.close(seats)
    one = One(pool, {'environment': 'number_game'}, 0)
    with pytest.raises(EpisodeFailed, match='the row names number_game'):
        one.begin()


def test_what_fails_there_is_told_here(own: Path, workers: Workers, serve: Serve) -> None:
    faults = {'raises': 'OSError: it broke', 'hangs in step': 'step took longer than', 'dies': 'SIGKILL'}
    for how, reason in faults.items():
        url = serve(served(own, workers, how))
        one = One(Pool(url, retries=0, host=Remote(url)), {}, 7)
        one.begin()
        one.step(Said('a'))
        with pytest.raises(EpisodeFailed, match=reason):
            one.step(Said('b'))


def test_a_server_that_began_anew_is_told_the_episode_again(own: Path, workers: Workers, serve: Serve) -> None:
    name, kwargs = f'{own}/own.py:Awkward', {'folder': str(own)}
    first = Served(name, kwargs, workers)
    url = serve(make_app(first, told_of(name, kwargs, 2, SECONDS)))
    one = One(Pool(url, retries=0, host=Remote(url)), {}, 7)
    one.begin()
    one.step(Said('a'))
    first._open.clear()
    assert text(one.step(Said('b')).messages) == 'a b'


def test_environments_that_nobody_asks_are_closed(own: Path, workers: Workers) -> None:
    kept = Served('number_game', {}, workers, idle=0.0)
    reset = {'call': 'reset', 'rows': [{}], 'seeds': [0]}
    kept.ask(Message(id='a' * 8, **reset))
    kept.ask(Message(id='b' * 8, **reset))
    with pytest.raises(Lost):
        kept.ask(Message(id='a' * 8, call='step', said=[{'text': '1', 'calls': [], 'parts': []}]))
    assert 'steps' in kept.ask(Message(id='b' * 8, call='step', said=[{'text': '1', 'calls': [], 'parts': []}]))


@pytest.mark.parametrize(
    ('body', 'status', 'reason'),
    [
        (b'{', 400, 'no JSON'),
        (b'[]', 400, 'the body'),
        (b'{"id": "abcdefgh", "call": "load"}', 400, 'call'),
        (b'{"id": "abcdefgh", "call": "step"}', 410, 'gone'),
        (b'{"id": "abcdefgh", "call": "reset", "rows": [3], "seeds": [0]}', 400, 'rows.0'),
        (b'{"id": "abcdefgh", "call": "reset", "rows": [{"messages": 3}], "seeds": [0]}', 200, 'TypeError'),
        (b'{"id": "abcdefgi", "call": "reset", "rows": [{"messages": [{"role": "user", "content": [{"type": "image", '
         b'"image": "/etc/passwd"}]}]}], "seeds": [0]}', 200, 'no data URI'),
        (b'{"id": "abcdefgj", "call": "reset", "name": "x.py:Y", "kwargs": {"high": 0}, "rows": [{}], "seeds": [0]}',
         200, 'I think of a number from 1 to 100'),
    ],
)  # fmt: skip
def test_messages_that_are_none(workers: Workers, serve: Serve, body: bytes, status: int, reason: str) -> None:
    url = serve(make_app(Served('number_game', {}, workers), told_of('number_game', {}, 2, SECONDS)))
    answer = httpx2.post(f'{url}/ask', content=body, headers={'Content-Type': 'application/json'})
    assert answer.status_code == status and reason in answer.text
    assert httpx2.post(f'{url}/ask', content=body, headers={'Content-Type': 'text/plain'}).status_code == 415


def test_a_server_tells_what_can_be_done_there(workers: Workers, serve: Serve) -> None:
    told = told_of('reach', {}, 2, SECONDS)
    assert told.actions == {'names': [], 'dimensions': ['dx', 'dy']}
    url = serve(make_app(Served('reach', {}, workers), told))
    begun = One(Pool(url, host=Remote(url)), {}, 0).begin()
    assert begun.actions.dimensions == ('dx', 'dy') and begun.succeeds is True
    settings = EnvironmentCfgs(environment=url)
    arm, robot = ActionSpace(dimensions=('x', 'y', 'z')), ActionSpace(names=('up',))
    for space, reason in ((arm, 'has 2 numbers'), (robot, 'is 2 numbers there, and the policy says names')):
        with pytest.raises(SettingsError, match=f'cannot act in {url}: .*{reason}'):
            require_same_actions(settings, SimpleNamespace(emits={'action'}, space=space))
    require_same_actions(settings, SimpleNamespace(emits={'action'}, space=ActionSpace(dimensions=('x', 'y'))))


def test_who_has_no_key_is_not_let_in(workers: Workers, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    told = told_of('number_game', {}, 2, SECONDS)
    url = serve(make_app(Served('number_game', {}, workers), told, Keys(['a-long-secret'])))
    with pytest.raises(WorldError, match='401: no API key'):
        Remote(url).told  # noqa: B018
    monkeypatch.setenv('ALIGN_ANYTHING_API_KEY', 'a-long-secret')
    assert Remote(url).told.environment == 'number_game'
    assert httpx2.get(f'{url}/environment', headers={'Host': 'evil.example'}).status_code == 403


def test_servers_that_are_none(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_module, 'ALLOWANCE', 0.2)
    with pytest.raises(WorldError, match='cannot be reached.*align-anything serve-environment'):
        Remote('http://127.0.0.1:9').told  # noqa: B018

    def answering(found: Any, told: Any = None) -> Any:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope['type'] != 'http':
                return
            body = json.dumps({'environment': 'x'} if scope['path'] == '/environment' and told is None else found)
            await send({'type': 'http.response.start', 'status': 200, 'headers': []})
            await send({'type': 'http.response.body', 'body': body.encode()})

        return app

    with pytest.raises(WorldError, match='is no server of an environment'):
        Remote(serve(answering({'models': []}, told=True))).told  # noqa: B018

    async def page(scope: Any, receive: Any, send: Any) -> None:
        if scope['type'] == 'http':
            await send({'type': 'http.response.start', 'status': 200, 'headers': []})
            await send({'type': 'http.response.body', 'body': b'<html>'})

    with pytest.raises(WorldError, match='http://127.* is no server of an environment: .* no JSON.* Start one with'):
        Remote(serve(page)).told  # noqa: B018
    for answer, reason in (
        ([], 'answered by a list'),
        ({'observations': []}, 'answered without rewards, tools'),
        ({'observations': 'xy', 'tools': [], 'rewards': True}, 'reset of 1 episodes returned 2'),
        ({'observations': [3], 'tools': [], 'rewards': True}, 'came as int'),
        ({'observations': [[{'role': 'user', 'content': [{'type': 'image', 'image': '/etc/hostname'}]}]], 'tools': [],
          'rewards': True}, 'no data URI'),
        ({'observations': [[{'role': 'user', 'content': [{'type': 'image', 'url': 'file:///etc/hostname'}]}]],
          'tools': [], 'rewards': True}, '1 image placeholder'),
        ({'observations': [[{'role': 'user', 'content': [{'type': 'image_url', 'image_url': '/etc/hostname'}]}]],
          'tools': [], 'rewards': True}, 'came as image_url'),
        ({'observations': [[{'role': 'user', 'content': 'x', 'images': ['/etc/hostname']}]],
          'tools': [], 'rewards': True}, "came with 'images'"),
        ({'observations': ['x'], 'tools': [{'type': 'function'}], 'rewards': True}, 'its tools are none: tool 0'),
        ({'observations': ['x'], 'tools': [], 'rewards': True, 'actions': ['up']}, 'actions came as list'),
        ({'observations': ['x'], 'tools': [], 'rewards': True, 'actions': {'names': 'up'}}, "is the text 'up'"),
        ('x' * 2**26, 'more than the 67108864 bytes'),
    ):  # fmt: skip
        url = serve(answering(answer))
        with pytest.raises(EpisodeFailed, match=reason):
            One(Pool(url, retries=0, host=Remote(url)), {}, 0).begin()


def test_what_ended_with_its_server_is_closed_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    remote = Remote('http://127.0.0.1:9')
    remote.told = Told(environment='x')
    begun = time.monotonic()
    with pytest.raises(Lost):
        remote.ask({'id': 'abcdefgh', 'call': 'close'})
    one = One(Pool('http://127.0.0.1:9', host=remote), {}, 0)
    one.seats[0].session._environment = remote.make('http://127.0.0.1:9', {}, 0)
    one.close()
    assert caplog.text == '' and time.monotonic() - begun < remote_module.ALLOWANCE / 2


def test_what_cannot_be_served_is_refused(own: Path) -> None:
    rest = {'workers': 1, 'timeout': 1.0, 'host': '127.0.0.1', 'port': 1, 'api_key_file': None, 'devices': False}
    with pytest.raises(SettingsError, match='names no arguments'):
        serve_environment('number_game', '3', **rest)
    with pytest.raises(SettingsError, match="no option 'hihg'"):
        serve_environment('number_game', '{hihg: 3}', **rest)
    with pytest.raises(SettingsError, match='--kwargs: not valid YAML'):
        serve_environment('number_game', '{high: ', **rest)
    # As runs read environment_kwargs, and not as YAML 1.1 does.
    with pytest.raises(SettingsError, match="option 'high' of environment 'number_game' is 'no'"):
        serve_environment('number_game', '{high: no}', **rest)
    with pytest.raises(WorldError, match="unknown environment 'numbergame'"):
        serve_environment('numbergame', '{}', **rest)
