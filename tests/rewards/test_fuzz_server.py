"""The reward service is sent what nobody thought of: it answers in one form, and goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from align_anything.rewards import server
from align_anything.rewards.base import get_reward

LIMIT = 20_000
ROUNDS = pytest.mark.parametrize('rounds', [60, pytest.param(1000, marks=pytest.mark.extended)])
# The same inputs each time, and nothing kept on disk.
HYPOTHESIS = settings(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
JSON = {'Content-Type': 'application/json'}
REWARDS: dict[str, dict[str, Any]] = {
    'exact_match': {'extract': None, 'ignore_case': True, 'ignore_whitespace': True},
    'length': {'max_length': 10, 'cache': 5},
    'repetition': {'ngram': 3, 'max_penalty': -1.0},
    'choice': {'letters': 'ABCD'},
    'format': {},
}
# Halves of surrogate pairs among them, which JSON can write and UTF-8 cannot.
TEXT = st.text(st.characters(codec=None), max_size=20) | st.sampled_from(
    ['', '\ud83d', '\x00', 'A', '<answer>A</answer>']
)
NUMBERS = st.integers(-(10**400), 10**400) | st.integers(-2, 20) | st.floats()
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
PARTS = VALUES | st.fixed_dictionaries(
    {'type': st.sampled_from(['text', 'image', 'video', 'audio', 'x']) | VALUES},
    optional={
        'text': TEXT | VALUES,
        **{
            kind: VALUES | st.sampled_from(['data:', 'data:image/png;base64,AAAA', 'data:;base64,=', '/etc/hostname'])
            for kind in ('image', 'video', 'audio')
        },
    },
)
MESSAGES = VALUES | st.fixed_dictionaries(
    {'role': TEXT | VALUES, 'content': TEXT | st.lists(PARTS, max_size=2) | VALUES}
)


def often(right: st.SearchStrategy) -> st.SearchStrategy:
    return st.integers(0, 9).flatmap(lambda number: VALUES if number == 9 else right)


@st.composite
def questions(draw: st.DrawFn) -> Any:
    """Mostly lists of one length, as a question has them; sometimes of other things, and with other keys."""
    count = draw(st.integers(0, 3))

    def listed(each: st.SearchStrategy) -> st.SearchStrategy:
        return often(st.lists(each, min_size=count, max_size=count))

    return draw(
        often(
            st.fixed_dictionaries(
                {'prompts': listed(TEXT), 'responses': listed(TEXT)},
                optional={
                    'conversations': listed(st.lists(MESSAGES, max_size=2)),
                    'messages': listed(MESSAGES),
                    'prefixes': listed(TEXT),
                    'ground_truths': listed(TEXT | st.none()),
                    'golden_responses': listed(TEXT | st.none()),
                    'lengths': listed(NUMBERS),
                    'finished': listed(st.booleans()),
                    'more': VALUES,
                },
            )
        )
    )


@pytest.fixture(scope='module')
def clients() -> Iterator[dict[str, TestClient]]:
    apps = {name: server.make_app(name, get_reward(name), options, limit=LIMIT) for name, options in REWARDS.items()}
    yield {name: TestClient(app, raise_server_exceptions=False) for name, app in apps.items()}


def check(answer: Any, count: int | None = None) -> None:
    said = answer.json()
    if answer.status_code == 200:
        assert set(said) == {'rewards'} and all(isinstance(value, float) for value in said['rewards'])
        assert count is None or len(said['rewards']) == count
    else:
        assert answer.status_code in (400, 413), said
        assert set(said) == {'error'} and isinstance(said['error'], str) and said['error']


@ROUNDS
def test_any_question_is_answered_or_refused(clients: dict[str, TestClient], rounds: int) -> None:
    counted: set[int] = set()

    @settings(HYPOTHESIS, max_examples=rounds)
    @given(question=questions(), name=st.sampled_from(sorted(REWARDS)))
    def asks(question: Any, name: str) -> None:
        prompts = question.get('prompts') if isinstance(question, dict) else None
        count = len(prompts) if isinstance(prompts, list) else None
        answer = clients[name].post('/get_reward', content=json.dumps(question), headers=JSON)
        counted.add(answer.status_code)
        check(answer, count)
        assert clients[name].get('/health').json() == {'status': 'ok', 'reward': name}

    asks()
    assert {200, 400} <= counted


@ROUNDS
def test_any_bytes_are_refused(clients: dict[str, TestClient], rounds: int) -> None:
    @settings(HYPOTHESIS, max_examples=rounds)
    @given(
        body=st.binary(max_size=200) | st.integers(LIMIT - 1, LIMIT + 1).map(bytes),
        kind=st.sampled_from(['application/json', 'text/plain', '', 'x']),
    )
    def asks(body: bytes, kind: str) -> None:
        answer = clients['format'].post('/get_reward', content=body, headers={'Content-Type': kind})
        assert answer.status_code == (413 if len(body) > LIMIT else 400)
        check(answer)

    asks()


@pytest.mark.parametrize(
    ('method', 'path', 'status', 'message'),
    [
        ('GET', '/nowhere', 404, 'Not Found'),
        ('GET', '/get_reward', 405, 'Method Not Allowed'),
        ('POST', '/health', 405, 'Method Not Allowed'),
    ],
)
def test_errors_of_the_framework_have_the_same_form(
    clients: dict[str, TestClient], method: str, path: str, status: int, message: str
) -> None:
    answer = clients['format'].request(method, path)
    assert (answer.status_code, answer.json()) == (status, {'error': message})
    assert status != 405 or answer.headers['Allow']
