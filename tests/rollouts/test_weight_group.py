"""Groups that carry weights: nobody waits for ever for a side that is dead, absent, or has refused."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, ClassVar

import httpx2
import pytest
import torch
from fastapi.testclient import TestClient

from align_anything.core.errors import TrainingError
from align_anything.rollouts import vllm_client, vllm_server
from align_anything.rollouts.vllm_client import Servers
from align_anything.rollouts.vllm_engine import Engine, VLLMOptions
from align_anything.rollouts.vllm_server import Served, make_app
from align_anything.rollouts.weight_group import PeerError, join_group, receive, send
from align_anything.rollouts.wire import pack
from tests.harness.ranks import free_port
from tests.harness.warm import import_vllm
from tests.rewards.common import served


class Work:
    """What a group is at: done after so many looks, or never."""

    def __init__(self, looks: float, fails: bool = False) -> None:
        self.looks, self.fails = looks, fails

    def is_completed(self) -> bool:
        self.looks -= 1
        return self.looks <= 0

    def wait(self) -> None:
        if self.fails:
            raise RuntimeError('Connection closed by peer')


class Group:
    def __init__(self, *works: Work) -> None:
        self.works = list(works)

    def broadcast(self, tensor: torch.Tensor, root: int) -> Work:
        return self.works.pop(0)


def test_a_tensor_is_waited_for_as_long_as_settings_say() -> None:
    shapes = [('a', 'float32', [2]), ('b', 'bfloat16', [3])]
    assert set(receive(Group(Work(3), Work(1)), shapes, 'gloo', 5.0)) == {'a', 'b'}
    started = time.monotonic()
    with pytest.raises(PeerError, match=r'did nothing for 0\.05 s'):
        receive(Group(Work(1), Work(float('inf'))), shapes, 'gloo', 0.05)
    assert time.monotonic() - started < 5
    with pytest.raises(PeerError, match='gone: Connection closed by peer'):
        receive(Group(Work(1, fails=True)), shapes, 'gloo', 5.0)


def test_what_is_heard_while_sending_ends_it() -> None:
    def listen() -> None:
        raise TrainingError('refused')

    with pytest.raises(TrainingError, match='refused'):
        send(Group(Work(float('inf'))), [torch.ones(1)], 'gloo', 60.0, listen)


@pytest.mark.extended
def test_an_absent_member_and_a_dead_one_are_given_up() -> None:
    """The real groups of vLLM, from both sides."""
    import_vllm()
    for rank in (0, 1):
        started = time.monotonic()
        with pytest.raises(PeerError, match='not all 2 members of the group at 127.0.0.1'):
            join_group('127.0.0.1', free_port(), rank, 2, 'gloo', 1.0)
        assert time.monotonic() - started < 30
    client = TestClient(make_app(Served(group_seconds=1.0)))
    member = {'host': '127.0.0.1', 'port': free_port(), 'rank': 1, 'size': 2, 'backend': 'gloo'}
    answer = client.post('/group', content=pack(member, {}))
    assert answer.status_code == 500 and 'not all 2 members' in answer.json()['error']
    assert client.get('/health').json()['status'] == 'ok'


@pytest.mark.extended
def test_weights_arrive_through_a_real_group(monkeypatch: pytest.MonkeyPatch) -> None:
    import_vllm()
    loaded: list[dict[str, torch.Tensor]] = []

    class Keeps(Engine):
        def load(self, named: Any) -> None:
            self._llm = dict(named())
            loaded.append(self._llm)

    monkeypatch.setattr(vllm_server, 'Engine', Keeps)
    monkeypatch.setattr(vllm_client, 'CHUNK_BYTES', 20)
    weights = {'a': torch.arange(5.0), 'b': torch.ones(2, 3, dtype=torch.bfloat16), 'c': torch.tensor(7)}
    with served(make_app(Served())) as one, served(make_app(Served())) as other:
        group = Servers([one, other], 'tiny', VLLMOptions('float32', 8), 60.0, 'gloo')
        for _ in range(2):
            group.load(lambda: iter(weights.items()))
        assert {httpx2.get(f'{url}/health').json()['run'] for url in (one, other)} == {group.run}
    assert len(loaded) == 4
    for found in loaded:
        assert found.keys() == weights.keys()
        assert all(
            torch.equal(found[name], weights[name]) and found[name].dtype == weights[name].dtype for name in weights
        )


@pytest.fixture
def url() -> Iterator[str]:
    with served(make_app(Served(group_seconds=1.0))) as address:
        yield address


def servers(url: str, backend: str = 'gloo', seconds: float = 60.0) -> Servers:
    return Servers([url], 'tiny', VLLMOptions('float32', 8), seconds, backend)


def test_a_run_sees_that_a_server_refuses_while_it_sends(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own side of the group would wait until the time is over."""
    monkeypatch.setattr(vllm_client, 'join_group', lambda **_: Group(*[Work(float('inf'))] * 9))
    monkeypatch.setattr(vllm_server, 'join_group', lambda **_: None)
    started = time.monotonic()
    with pytest.raises(TrainingError, match=r'/weights answered 400: this server is in no group of this run'):
        servers(url).load(lambda: iter([('a', torch.ones(1))]))
    assert time.monotonic() - started < 30


def test_a_run_sees_that_a_server_cannot_join_while_it_joins(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(**_: Any) -> None:
        time.sleep(60)

    def fails(**_: Any) -> None:
        raise PeerError('no route')

    monkeypatch.setattr(vllm_client, 'join_group', never)
    monkeypatch.setattr(vllm_server, 'join_group', fails)
    started = time.monotonic()
    with pytest.raises(TrainingError, match='/group answered 500: no route'):
        servers(url).load(lambda: iter([('a', torch.ones(1))]))
    assert time.monotonic() - started < 30


def test_a_run_hears_of_a_side_that_is_gone_what_the_server_says_of_it(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(*_: Any) -> None:
        time.sleep(0.3)
        raise PeerError('the rank that feeds this server is gone')

    monkeypatch.setattr(vllm_client, 'join_group', lambda **_: Group(Work(1, fails=True)))
    monkeypatch.setattr(vllm_server, 'join_group', lambda **_: 'group')
    monkeypatch.setattr(vllm_server, 'receive', late)
    monkeypatch.setattr(vllm_server, 'Engine', lambda *_: type('Engine', (), {'started': False})())
    with pytest.raises(TrainingError, match='/weights answered 500: the rank that feeds this server is gone'):
        servers(url).load(lambda: iter([('a', torch.ones(1))]))
    assert httpx2.get(f'{url}/health').json() == {'status': 'ok', 'model': None}


class Workers:
    """Stands in for an engine of several devices."""

    made: ClassVar[list[Workers]] = []

    def __init__(self, source: str, options: VLLMOptions, copies: int) -> None:
        self.source, self.options, self.copies, self.started = source, options, copies, False
        self.told: list[Any] = []
        self.made.append(self)

    def start(self) -> None:
        self.started = True

    def join(self, **member: Any) -> None:
        self.told.append((member['rank'], member['size'], member['backend']))

    def begin_weights(self) -> None:
        self.told.append('begin')

    def receive(self, shapes: Any, backend: str, seconds: float) -> None:
        self.told.append([name for name, *_ in shapes])

    def read(self, tensors: dict[str, torch.Tensor]) -> None:
        self.told.append({name: tensor.tolist() for name, tensor in tensors.items()})

    def use(self) -> None:
        self.told.append('use')


@pytest.mark.parametrize('backend', ['gloo', None])
def test_every_worker_of_a_server_is_a_member_of_the_group(
    backend: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three servers, of which one has a device, one a copy on two, and one two copies on two each."""
    single: list[Any] = []
    monkeypatch.setattr(Workers, 'made', [])
    monkeypatch.setattr(vllm_server, 'ParallelEngine', Workers)
    monkeypatch.setattr(
        vllm_server, 'join_group', lambda **member: single.append((member['rank'], member['size'])) or single
    )
    monkeypatch.setattr(vllm_server, 'receive', lambda *_: {})
    monkeypatch.setattr(Engine, 'load', lambda self, named: None)
    monkeypatch.setattr(vllm_client, 'CHUNK_BYTES', 4)
    joined: list[Any] = []
    monkeypatch.setattr(vllm_client, 'join_group', lambda **member: joined.append(member) or joined)
    monkeypatch.setattr(vllm_client, 'send', lambda *_: None)
    weights = {'a': torch.ones(1), 'b': torch.zeros(1)}
    parts = [Served(), Served(split=2), Served(split=2, copies=2)]
    with ExitStack() as stack:
        urls = [stack.enter_context(served(make_app(one))) for one in parts]
        fed = Servers(urls, 'tiny', VLLMOptions('float32', 8), 60.0, backend)
        for _ in range(2):
            fed.load(lambda: iter(weights.items()))
        assert [httpx2.get(f'{url}/health').json().get('workers') for url in urls] == [None, 2, 4]
    one, other = sorted(Workers.made, key=lambda own: own.copies)
    assert (one.copies, other.copies, one.options.tensor_parallel_size) == (1, 2, 2) and one.source == 'tiny'
    if backend is None:
        assert one.told == other.told == ['begin', {'a': [1.0]}, {'b': [0.0]}, 'use'] * 2 and not joined
        return
    assert [member['size'] for member in joined] == [8] and single == [(1, 8)]
    handed = ['begin', ['a'], ['b'], 'use'] * 2
    assert one.told == [(2, 8, 'gloo'), *handed] and other.told == [(4, 8, 'gloo'), *handed]
