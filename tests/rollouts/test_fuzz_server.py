"""The generation server is sent messages that are well formed and wrong, and bytes that are no messages."""

from __future__ import annotations

import dataclasses
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from align_anything.rollouts import vllm_server
from align_anything.rollouts.vllm_engine import Engine, Generated, Request, RequestError, VLLMOptions
from align_anything.rollouts.vllm_server import Options, Served, make_app
from align_anything.rollouts.weight_group import PeerError
from align_anything.rollouts.wire import RUN_HEADER, pack, pack_requests, unpack_generated

ROUNDS = pytest.mark.parametrize('rounds', [60, pytest.param(1000, marks=pytest.mark.extended)])
HYPOTHESIS = settings(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
OPTIONS = dataclasses.asdict(VLLMOptions('float32', 8))
CHUNK = {'model': 'tiny', 'options': OPTIONS, 'first': True, 'last': True, 'backend': None}
MEMBER = {'host': '127.0.0.1', 'port': 1234, 'rank': 1, 'size': 2, 'backend': 'gloo'}
SHAPES = [['a', 'float32', [2]]]
ASKED = {'prompt': {'prompt_token_ids': [1, 2]}, 'media': {}, 'parameters': {'n': 1}}
PICTURE = torch.zeros(2, 3, 3, dtype=torch.uint8)
SOUND = torch.zeros(5)


class Echo(Engine):
    """Answers prompts with themselves."""

    def load(self, named: Callable) -> None:
        self._llm = dict(named())

    def begin(self, requests: list[Request]) -> list[str]:
        if any(request.parameters.get('n') == 'many' for request in requests):
            raise RequestError('vLLM cannot sample in this way: n')
        self.asked = {
            str(number): Generated(one.prompt['prompt_token_ids'], [([3], [-0.5])])
            for number, one in enumerate(requests)
        }
        return [*self.asked]

    def step(self) -> dict[str, Generated]:
        return self.asked


@pytest.fixture(autouse=True)
def _without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_server, 'Engine', Echo)


@pytest.fixture
def client() -> Iterator[TestClient]:
    served = Served(limit=1000)
    client = TestClient(make_app(served, limit=4000), raise_server_exceptions=False)
    assert client.post('/weights', content=pack(CHUNK, {'a': torch.ones(1)})).json() == {'weights': 1}
    yield client


def asked(**changes: Any) -> list:
    return [{**ASKED, **changes}]


WRONG: dict[str, tuple[str, Any, dict[str, torch.Tensor], str]] = {
    'no record': ('/weights', None, {}, 'valid dictionary'),
    'a rank outside the group': ('/group', {**MEMBER, 'rank': 2}, {}, 'rank 2 is none of 2 members'),
    'the rank of the run': ('/group', {**MEMBER, 'rank': 0}, {}, 'rank: '),
    'no port': ('/group', {**MEMBER, 'port': 70000}, {}, 'port: '),
    'a port as text': ('/group', {**MEMBER, 'port': '80'}, {}, 'port: '),
    'another backend': ('/group', {**MEMBER, 'backend': 'mpi'}, {}, 'backend: '),
    'an unknown key': ('/group', {**MEMBER, 'secret': 1}, {}, 'secret: '),
    'no group': ('/weights', {**CHUNK, 'backend': 'gloo', 'shapes': SHAPES}, {}, 'must join one first'),
    'both ways': ('/weights', {**CHUNK, 'backend': 'gloo', 'shapes': SHAPES}, {'a': SOUND}, 'must come one way'),
    'shapes of nobody': ('/weights', {**CHUNK, 'shapes': SHAPES}, {}, 'no group that sends them'),
    'no such type': ('/weights', {**CHUNK, 'shapes': [['a', 'nn', [2]]]}, {}, 'shapes.0.1: '),
    'a negative shape': ('/weights', {**CHUNK, 'shapes': [['a', 'float32', [-2]]]}, {}, 'shapes.0.2.0: '),
    'an unknown option': ('/weights', {**CHUNK, 'options': {**OPTIONS, 'speed': 9}}, {}, 'options.speed'),
    'no length': ('/weights', {**CHUNK, 'options': {**OPTIONS, 'max_length': 0}}, {}, 'options.max_length'),
    'all memory': ('/weights', {**CHUNK, 'options': {**OPTIONS, 'memory': 7}}, {}, 'options.memory'),
    'several devices': (
        '/weights',
        {**CHUNK, 'options': {**OPTIONS, 'tensor_parallel_size': 2}},
        {},
        'tensor_parallel',
    ),
    'no dtype': ('/weights', {**CHUNK, 'options': {**OPTIONS, 'dtype': 'auto'}}, {}, 'options.dtype'),
    'no list': ('/generate', {'a': 1}, {}, 'valid list'),
    'no prompt': ('/generate', [{'media': {}, 'parameters': {}}], {}, '0.prompt: Field required'),
    'an empty prompt': ('/generate', asked(prompt={'prompt_token_ids': []}), {}, 'at least 1 item'),
    'negative tokens': ('/generate', asked(prompt={'prompt_token_ids': [-1]}), {}, 'greater than or equal to 0'),
    'tokens as text': ('/generate', asked(prompt={'prompt_token_ids': ['1']}), {}, 'valid integer'),
    'a prompt too long': ('/generate', asked(prompt={'prompt_token_ids': [1] * 8}), {}, 'request 0 has 8 tokens'),
    'another prompt': ('/generate', asked(prompt={'prompt_token_ids': [1], 'prompt': 'x'}), {}, 'not permitted'),
    'another kind': ('/generate', asked(media={'smell': []}), {}, 'media.smell'),
    'a medium never sent': ('/generate', asked(media={'image': [{'name': 'x'}]}), {}, "'x' was never sent"),
    'a nameless medium': ('/generate', asked(media={'image': [{}]}), {}, 'no tensor'),
    'a name and none': (
        '/generate',
        asked(media={'image': [{'tensor': 'x'}, {'tensor': 'x', 'name': 'y'}]}),
        {'x': PICTURE},
        'some have none',
    ),
    'no tensor': ('/generate', asked(media={'image': [{'tensor': 'x'}]}), {}, "no tensor 'x'"),
    'a sound as picture': ('/generate', asked(media={'image': [{'tensor': 'x'}]}), {'x': SOUND}, 'float32 (5,)'),
    'a picture as sound': (
        '/generate',
        asked(media={'audio': [{'tensor': 'x', 'rate': 5}]}),
        {'x': PICTURE},
        'form of',
    ),
    'a sound without rate': ('/generate', asked(media={'audio': [{'tensor': 'x'}]}), {'x': SOUND}, 'form of audio'),
    'half a sound': (
        '/generate',
        asked(media={'audio': [{'tensor': 'x', 'rate': 5}]}),
        {'x': SOUND.bfloat16()},
        'bfloat16 (5,)',
    ),
    'a picture as video': (
        '/generate',
        asked(media={'video': [{'tensor': 'x', 'metadata': {}}]}),
        {'x': PICTURE},
        'form of video',
    ),
    'a bias of no token': ('/generate', asked(parameters={'logit_bias': {'a': 1.0}}), {}, 'valid integer'),
    'media never sent': ('/media', asked(media={'image': [{'name': 'x'}]}), {}, "'x' was never sent"),
    'no media': ('/media', {'a': 1}, {}, 'valid list'),
    'no way to sample': ('/generate', asked(parameters={'n': 'many'}), {}, 'cannot sample in this way'),
}


@pytest.mark.parametrize('name', WRONG)
def test_messages_that_are_well_formed_and_wrong(client: TestClient, name: str) -> None:
    path, record, tensors, message = WRONG[name]
    answer = client.post(path, content=pack(record, tensors))
    assert answer.status_code == 400 and set(answer.json()) == {'error'} and message in answer.json()['error']
    assert client.get('/health').json()['status'] == 'ok'
    (found,) = unpack_generated(client.post('/generate', content=pack(asked(), {})).content)
    assert found == Generated([1, 2], [([3], [-0.5])])


def test_options_are_those_that_a_run_sends() -> None:
    assert set(Options.model_fields) == {field.name for field in dataclasses.fields(VLLMOptions)}
    assert VLLMOptions(**Options(dtype='float32', max_length=8).model_dump()) == VLLMOptions('float32', 8)


def test_announced_weights_have_the_limit_of_a_message(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_server, 'join_group', lambda **_: 'group')
    assert client.post('/group', content=pack(MEMBER, {})).json() == {'rank': 1}
    huge = {**CHUNK, 'backend': 'gloo', 'shapes': [['a', 'float32', [10**6, 10**6]]]}
    answer = client.post('/weights', content=pack(huge, {}))
    assert answer.status_code == 400 and '4000000000000 bytes of weights are announced' in answer.json()['error']


def test_a_body_past_the_limit_is_not_read(client: TestClient) -> None:
    for content in (b'x' * 4001, iter([b'x' * 2000] * 3)):
        answer = client.post('/weights', content=content)
        assert answer.status_code == 413
        assert answer.json() == {'error': 'the body is larger than the 4000 bytes that this server takes.'}
    assert client.post('/weights', content=b'x' * 4000).status_code == 400


# JSON that is nearly a record: one part of a right one replaced, added or left out.
LEAVES = st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.text(max_size=5)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
RIGHT = [('/weights', CHUNK), ('/group', MEMBER), ('/generate', asked(media={'image': [{'tensor': 'x'}]}))]


def changed(value: Any, draw: st.DrawFn) -> Any:
    if isinstance(value, dict) and value and draw(st.booleans()):
        key = draw(st.sampled_from([*value, 'more']))
        rest = {name: item for name, item in value.items() if name != key}
        return rest if draw(st.booleans()) else {**rest, key: changed(value.get(key), draw)}
    if isinstance(value, list) and value and draw(st.booleans()):
        return [*value, changed(value[-1], draw)]
    return draw(VALUES)


@ROUNDS
def test_any_record_is_answered_or_refused(client: TestClient, rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_server, 'join_group', lambda **_: 'group')
    monkeypatch.setattr(vllm_server, 'receive', lambda group, shapes, backend, seconds: {})
    counted: set[int] = set()

    @settings(HYPOTHESIS, max_examples=rounds)
    @given(data=st.data(), which=st.sampled_from(range(len(RIGHT))))
    def asks(data: st.DataObject, which: int) -> None:
        path, record = RIGHT[which]
        record = data.draw(st.composite(lambda draw: changed(record, draw))())
        answer = client.post(path, content=pack(record, {'x': PICTURE}))
        counted.add(answer.status_code)
        # 500 for what a run has to mend and not a message: another model, for instance.
        assert answer.status_code in (200, 400, 500)
        if answer.status_code != 200:
            assert set(answer.json()) == {'error'} and ' in the server; its log' not in answer.json()['error']
        assert client.get('/health').json()['status'] == 'ok'

    asks()
    assert 400 in counted


@ROUNDS
def test_any_bytes_are_refused(client: TestClient, rounds: int) -> None:
    right = pack_requests([Request({'prompt_token_ids': [1]}, {'n': 1})])

    @settings(HYPOTHESIS, max_examples=rounds)
    @given(
        body=st.binary(max_size=200)
        | st.builds(lambda start, more: right[:start] + more, st.integers(0, len(right) - 1), st.binary(max_size=20)),
        path=st.sampled_from(['/generate', '/weights', '/group']),
    )
    def asks(body: bytes, path: str) -> None:
        answer = client.post(path, content=body)
        assert answer.status_code == 400 and set(answer.json()) == {'error'}

    asks()


def test_a_deep_record_is_refused(client: TestClient) -> None:
    header = b'{"__metadata__":{"record":"' + b'[' * 1500 + b'"}}'
    answer = client.post('/generate', content=len(header).to_bytes(8, 'little') + header)
    assert answer.status_code == 400 and answer.json()['error']


# Runs and their groups


def send(client: TestClient, run: str, path: str = '/weights', content: bytes = b'', **changes: Any) -> Any:
    content = content or pack({**CHUNK, **changes}, {} if changes.get('backend') else {'a': torch.ones(1)})
    return client.post(path, content=content, headers={RUN_HEADER: run})


def test_a_run_generates_with_no_weights_of_another(client: TestClient) -> None:
    question = pack(asked(), {})
    assert send(client, 'first').status_code == 200
    assert send(client, 'first', '/generate', question).status_code == 200
    assert client.get('/health').json() == {'status': 'ok', 'model': 'tiny', 'run': 'first'}
    # One run begins to hand over while another is at it.
    assert send(client, 'second', last=False).status_code == 200
    answer = send(client, 'first', first=False)
    assert answer.status_code == 400 and "was one of run 'second', but this is one of 'first'" in answer.json()['error']
    assert 'last chunk of the weights was not sent yet' in send(client, 'second', '/generate', question).json()['error']
    assert send(client, 'second', first=False).status_code == 200
    answer = send(client, 'first', '/generate', question)
    assert answer.status_code == 400 and "has the weights of run 'second' by now" in answer.json()['error']
    assert send(client, 'second', '/generate', question).status_code == 200


def test_a_group_belongs_to_one_run(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_server, 'join_group', lambda **_: 'group')
    monkeypatch.setattr(vllm_server, 'receive', lambda *_: {'a': torch.ones(1)})
    assert send(client, 'first', '/group', pack(MEMBER, {})).status_code == 200
    assert send(client, 'first', backend='gloo', shapes=SHAPES).json() == {'weights': 1}
    answer = send(client, 'second', backend='gloo', shapes=SHAPES)
    assert answer.status_code == 400 and 'in no group of this run' in answer.json()['error']


def test_weights_that_do_not_arrive_leave_nothing_to_generate_with(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(*_: Any) -> None:
        raise PeerError('the other side of the group did nothing for 60 s.')

    monkeypatch.setattr(vllm_server, 'join_group', lambda **_: 'group')
    monkeypatch.setattr(vllm_server, 'receive', absent)
    assert send(client, 'first', '/group', pack(MEMBER, {})).status_code == 200
    answer = send(client, 'first', backend='gloo', shapes=SHAPES)
    assert answer.status_code == 500 and 'did nothing for 60 s' in answer.json()['error']
    assert send(client, 'first', '/generate', pack(asked(), {})).status_code == 500
    # Another run, which needs no group, takes it over.
    assert send(client, 'second').status_code == 200
    assert send(client, 'second', '/generate', pack(asked(), {})).status_code == 200


def test_an_engine_that_did_not_start_is_not_kept(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise RequestError('no such model')

    client = TestClient(make_app(Served()))
    with monkeypatch.context() as broken:
        broken.setattr(Echo, 'load', fails)
        assert send(client, 'first', model='nowhere').status_code == 400
    assert client.get('/health').json() == {'status': 'ok', 'model': None}
    assert send(client, 'second').status_code == 200


def test_health_tells_of_a_server_that_is_busy(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, released = threading.Event(), threading.Event()

    def slow(self: Echo) -> dict[str, Generated]:
        entered.set()
        assert released.wait(30)
        return self.asked

    monkeypatch.setattr(Echo, 'step', slow)
    thread = threading.Thread(target=lambda: client.post('/generate', content=pack(asked(), {})))
    thread.start()
    try:
        assert entered.wait(30)
        time.sleep(0.02)
        told = client.get('/health').json()
        assert told['status'] == 'busy' and told['doing'] == 'generating' and told['seconds'] >= 0.02
    finally:
        released.set()
        thread.join()
    assert client.get('/health').json()['status'] == 'ok'


def test_a_port_in_use_is_said_before_vllm_is_loaded(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, 'vllm', None)
    with socket.create_server(('127.0.0.1', 0)) as other, caplog.at_level(logging.ERROR, logger='align_anything'):
        port = other.getsockname()[1]
        with pytest.raises(SystemExit) as ended:
            vllm_server.main(['--port', str(port)])
    assert ended.value.code == 2 and f'port {port} is in use on 127.0.0.1' in caplog.text
    caplog.clear()
    with pytest.raises(SystemExit) as ended, caplog.at_level(logging.ERROR, logger='align_anything'):
        vllm_server.main(['--port', str(port)])
    assert ended.value.code == 2 and 'the server needs vllm' in caplog.text
