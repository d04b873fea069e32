"""Messages between a run and a server that generates for it: what is read is what was written, nothing else is."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from align_anything.core.errors import SampleError
from align_anything.rollouts.vllm_client import CHUNK_BYTES, _chunks
from align_anything.rollouts.vllm_engine import Engine, Generated, Request, VLLMOptions
from align_anything.rollouts.vllm_server import Served, make_app
from align_anything.rollouts.wire import (
    named_media,
    pack,
    pack_generated,
    pack_requests,
    unpack,
    unpack_generated,
    unpack_requests,
)

RANDOM = np.random.default_rng(0)
PIXELS, FRAMES = (RANDOM.integers(0, 256, shape).astype(np.uint8) for shape in ((5, 7, 3), (2, 4, 6, 3)))
SOUND = RANDOM.standard_normal(9).astype(np.float32)


def test_requests_arrive_as_they_were() -> None:
    media = {
        'image': [Image.fromarray(PIXELS), Image.fromarray(PIXELS[:3])],
        'audio': [(SOUND, 16000)],
        'video': [(FRAMES, {'fps': 2.0, 'frames_indices': [0, 1], 'do_sample_frames': False})],
    }
    requests = [
        Request({'prompt_token_ids': [3, 1, 2], 'multi_modal_data': media}, {'n': 2, 'logit_bias': {7: -100.0}}),
        Request({'prompt_token_ids': [4]}, {'n': 1, 'logit_bias': None}),
    ]
    found = unpack_requests(pack_requests(requests))
    assert [item.parameters for item in found] == [item.parameters for item in requests]
    assert found[1].prompt == {'prompt_token_ids': [4]} and found[0].prompt['prompt_token_ids'] == [3, 1, 2]
    arrived = found[0].prompt['multi_modal_data']
    assert [np.array(item).tolist() for item in arrived['image']] == [PIXELS.tolist(), PIXELS[:3].tolist()]
    ((samples, rate),), ((frames, metadata),) = arrived['audio'], arrived['video']
    assert np.array_equal(samples, SOUND) and rate == 16000
    assert np.array_equal(frames, FRAMES) and metadata == media['video'][0][1]


def test_media_with_names_go_once() -> None:
    def request(*names: str) -> Request:
        media = [Image.fromarray(PIXELS[: 2 + number]) for number in range(len(names))]
        prompt = {'prompt_token_ids': [1], 'multi_modal_data': {'image': media}}
        return Request({**prompt, 'multi_modal_uuids': {'image': [*names]}}, {'n': 1})

    def shapes(message: bytes) -> dict[str, list[int]]:
        return {name: [*tensor.shape] for name, tensor in unpack(message)[1].items()}

    first = pack_requests([request('r/0'), request('r/0', 'r/1')])
    assert shapes(first) == {'r/0': [2, 7, 3], 'r/1': [3, 7, 3]}
    arrived = unpack_requests(first)
    assert arrived[1].prompt['multi_modal_data']['image'][0] is arrived[0].prompt['multi_modal_data']['image'][0]
    held = named_media(arrived)
    assert [*held] == ['r/0', 'r/1']
    later = pack_requests([request('r/0', 'r/1', 'r/2')], held)
    assert shapes(later) == {'r/2': [4, 7, 3]}
    (one,) = unpack_requests(later, held)
    assert [image.height for image in one.prompt['multi_modal_data']['image']] == [2, 3, 4]
    assert one.prompt['multi_modal_uuids'] == {'image': ['r/0', 'r/1', 'r/2']}
    with pytest.raises(SampleError, match="'r/0' was never sent"):
        unpack_requests(later, {'r/1': held['r/1']})


def test_a_server_holds_what_each_rank_named_in_its_last_call() -> None:
    served, picture = Served(), Image.fromarray(PIXELS)
    for name in ('a/0/0', 'a/0/1', 'b/0/0', 'a/1/2', 'a/1/3'):
        media = {'multi_modal_data': {'image': [picture]}, 'multi_modal_uuids': {'image': [name]}}
        assert served.hold(pack_requests([Request({'prompt_token_ids': [1], **media}, {})])) == {'media': 1}
    assert sorted(served._media) == ['a/1/2', 'a/1/3', 'b/0/0']


def test_responses_arrive_as_they_were() -> None:
    generated = [Generated([1, 2], [([3, 4], [-0.1, -1 / 3]), ([], [])], 32)]
    assert unpack_generated(pack_generated(generated)) == generated


def test_weights_keep_their_type_and_are_split_into_chunks() -> None:
    _, tensors = unpack(pack({}, {'a': torch.ones(2, dtype=torch.bfloat16), 'b': torch.zeros(3, 2).T}))
    assert tensors['a'].dtype == torch.bfloat16 and tensors['b'].shape == (2, 3)
    large = torch.empty(CHUNK_BYTES // 2 + 1, dtype=torch.uint8)
    named = [('a', large), ('b', large), ('c', torch.ones(1))]
    assert [(list(chunk), last) for chunk, last in _chunks(iter(named))] == [(['a'], False), (['b', 'c'], True)]


@pytest.mark.parametrize('message', [b'', b'nonsense', b'\x80\x04pickle', pack({'no': 'list'}, {})])
def test_other_messages_are_refused(message: bytes) -> None:
    with pytest.raises(SampleError):
        unpack_requests(message)
    answer = TestClient(make_app(Served())).post('/generate', content=message)
    assert answer.status_code == 400 and answer.json()['error']


@pytest.mark.parametrize('path', ['/weights', '/group'])
@pytest.mark.parametrize('record', [[], {'first': True}, {'model': 3, 'options': {}}])
def test_records_that_say_too_little_are_refused(path: str, record: object) -> None:
    answer = TestClient(make_app(Served())).post(path, content=pack(record, {}))
    assert answer.status_code == 400 and answer.json()['error']


def test_a_server_takes_weights_from_the_first_chunk_on() -> None:
    options = dataclasses.asdict(VLLMOptions('float32', 8))
    record = {'model': 'anything', 'options': options, 'first': False, 'last': True, 'backend': None}
    answer = TestClient(make_app(Served())).post('/weights', content=pack(record, {'a': torch.ones(1)}))
    assert answer.status_code == 400 and 'the first chunk of these weights was never sent' in answer.json()['error']


def test_what_sleeps_is_woken_once() -> None:
    """Memory that is mapped already must not be mapped again."""
    engine, called = Engine('anything', VLLMOptions('float32', 8, sleeps=True)), []

    class Asked:
        def __getattr__(self, name: str) -> Any:
            return lambda *given, **how: called.append((name, *how.get('tags', ()))) or []

    engine._llm = Asked()
    engine._llm.llm_engine = Asked()
    for _ in range(2):
        engine.sleep()
        engine.sleep()
        engine.load(lambda: iter(()))
        engine.load(lambda: iter(()))
        engine._wake('weights', 'kv_cache')
    slept = [call for call in called if call[0] in ('sleep', 'wake_up')]
    assert slept == [('sleep',), ('wake_up', 'weights'), ('wake_up', 'kv_cache')] * 2


def test_a_server_without_weights_says_so() -> None:
    client = TestClient(make_app(Served()))
    assert client.get('/health').json() == {'status': 'ok', 'model': None}
    answer = client.post('/generate', content=pack_requests([]))
    assert answer.status_code == 500 and 'no run has handed weights' in answer.json()['error']


def test_a_server_runs_no_code_of_checkpoints_unless_told_to() -> None:
    options = dataclasses.asdict(VLLMOptions('float32', 8, trust_remote_code=True))
    record = {'model': 'anything', 'options': options, 'first': True, 'last': False, 'backend': None}
    message = pack(record, {'a': torch.ones(1)})
    answer = TestClient(make_app(Served())).post('/weights', content=message)
    assert answer.status_code == 500 and '--trust-remote-code' in answer.json()['error']
    assert TestClient(make_app(Served(True))).post('/weights', content=message).json() == {'weights': 1}
