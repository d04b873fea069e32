"""The server is sent what nobody thought of: it answers in one form, and goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import example, given, settings
from hypothesis import strategies as st

from align_anything.serve.app import make_app
from tests.rewards.test_fuzz_server import HYPOTHESIS, JSON, NUMBERS, ROUNDS, TEXT, VALUES, often
from tests.serve.common import limits, parrot_server

PATHS = (
    '/v1/chat/completions',
    '/v1/images/generations',
    '/v1/audio/speech',
    '/v1/rewards',
    '/api/v1/v2t',
    '/api/v1/v2v',
)
URLS = (
    st.sampled_from(['data:', 'data:image/png;base64,AAAA', '/etc/hostname', 'http://127.0.0.1/', 'data:;base64,='])
    | TEXT
)
PARTS = VALUES | st.fixed_dictionaries(
    {'type': st.sampled_from(['text', 'image_url', 'input_audio', 'audio_url', 'video_url', 'x']) | VALUES},
    optional={
        'text': TEXT | VALUES,
        'image_url': URLS | st.fixed_dictionaries({'url': URLS}) | VALUES,
        'video_url': URLS | VALUES,
        'input_audio': st.fixed_dictionaries({'data': TEXT, 'format': st.sampled_from(['wav', 'x'])}) | VALUES,
    },
)
ROLES = st.sampled_from(['system', 'developer', 'user', 'assistant', 'tool', 'x'])
TURNS = VALUES | st.fixed_dictionaries(
    {'role': ROLES, 'content': TEXT | st.lists(PARTS, max_size=2)},
    optional={'tool_calls': VALUES, 'name': TEXT | VALUES},
)
CALL = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
BODIES = often(
    st.fixed_dictionaries(
        {
            'model': often(st.just('parrot')),
            'messages': often(st.lists(often(TURNS), min_size=1, max_size=3)),
        },
        optional={
            'n': often(st.integers(0, 3)),
            'temperature': NUMBERS,
            'top_p': NUMBERS,
            'max_tokens': NUMBERS,
            'stop': TEXT | st.lists(TEXT, max_size=2) | VALUES,
            'seed': NUMBERS,
            'stream': st.booleans() | VALUES,
            'tools': st.just([{'type': 'function', 'function': {'name': 'f'}}]) | VALUES,
            'logit_bias': VALUES,
            'more': VALUES,
        },
    )
)


@pytest.fixture(scope='module')
def client() -> Iterator[TestClient]:
    server = parrot_server(limits=limits(body=20_000, seconds=5))
    yield TestClient(make_app(server), base_url='http://localhost', raise_server_exceptions=False)
    server.close()


@ROUNDS
def test_any_body_is_answered_or_refused(client: TestClient, rounds: int) -> None:
    counted: set[int] = set()

    @settings(HYPOTHESIS, max_examples=rounds)
    @given(body=BODIES, path=st.sampled_from(PATHS))
    @example(body={'model': 'nobody', 'messages': [{'role': 'user', 'content': 'x'}]}, path=PATHS[0])
    def asks(body: Any, path: str) -> None:
        answer = client.post(path, content=json.dumps(body), headers=JSON)
        counted.add(answer.status_code)
        if answer.status_code == 200:
            assert answer.text.startswith(('{', 'data: '))
        else:
            assert answer.status_code in (400, 404, 413), answer.text
            assert set(answer.json()['error']) == {'message', 'type', 'param', 'code'}

    asks()
    assert {400, 404} <= counted
    good = {'model': 'parrot', 'messages': [{'role': 'user', 'content': CALL}]}
    assert client.post(PATHS[0], json=good).json()['choices'][0]['message']['content'] == CALL


@ROUNDS
def test_any_bytes_are_refused(client: TestClient, rounds: int) -> None:
    @settings(HYPOTHESIS, max_examples=rounds)
    @given(
        body=st.binary(max_size=40), kind=st.sampled_from(['application/json', 'text/plain', 'multipart/form-data', ''])
    )
    def asks(body: bytes, kind: str) -> None:
        answer = client.post(PATHS[0], content=body, headers={'Content-Type': kind})
        assert answer.status_code in (400, 415) and answer.json()['error']['message']

    asks()
