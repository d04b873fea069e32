"""A reward service that is slow, wrong, dead for a while, or gone."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from align_anything.core.errors import RewardError, SettingsError
from align_anything.rewards import posting
from align_anything.rewards.remote import RemoteReward
from tests.rewards.common import completion

THREE = [completion(f'response {n}', n if n else None, prompt=f'prompt {n}', source=f'rows:{n}') for n in range(3)]


class Service:
    """A service that answers each request with the next of `script`, the last one for ever.

    An entry is what it answers (`bytes` as they are, a number as status, with a `Retry-After` as a tuple, anything else
    as `rewards`), or a function of the request that makes it; None closes the connection without a word.
    """

    def __init__(self, port: int = 0) -> None:
        self.script: list = []
        self.asked: list[dict] = []
        self.connections: list[socket.socket] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.1'

            def setup(self) -> None:
                super().setup()
                service.connections.append(self.connection)

            def log_message(self, *_: object) -> None:
                pass

            def do_POST(self) -> None:
                service.asked.append(json.loads(self.rfile.read(int(self.headers['Content-Length']))))
                entry = service.script.pop(0) if len(service.script) > 1 else service.script[0]
                if isinstance(entry, Callable):
                    entry = entry(service.asked[-1])
                if entry is None:
                    self.close_connection = True
                    return
                headers = {}
                if isinstance(entry, tuple):
                    entry, headers['Retry-After'] = entry
                status = entry if isinstance(entry, int) else 200
                content = {'error': 'boom'} if isinstance(entry, int) else {'rewards': entry}
                body = entry if isinstance(entry, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in {**headers, 'Content-Length': str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

        class Server(ThreadingHTTPServer):
            daemon_threads = True

        self.server = Server(('127.0.0.1', port), Handler)
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={'poll_interval': 0.01})
        self.thread.start()

    @property
    def url(self) -> str:
        return f'http://127.0.0.1:{self.port}/get_reward'

    def stop(self) -> None:
        for connection in self.connections:
            with suppress(OSError):  # closed by the other side
                connection.shutdown(socket.SHUT_RDWR)
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def by_number(question: dict) -> list[float]:
    return [float(response.split()[-1]) for response in question['responses']]


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.stop()


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posting, 'FIRST_DELAY', 0.02)


def test_what_is_sent(service: Service) -> None:
    service.script = [[0, 0.5, -1]]
    assert RemoteReward(service.url)(THREE) == [0.0, 0.5, -1.0]
    (asked,) = service.asked
    assert asked == {
        'prompts': ['prompt 0', 'prompt 1', 'prompt 2'],
        'responses': ['response 0', 'response 1', 'response 2'],
        'conversations': [one.conversation for one in THREE],
        'messages': [one.message for one in THREE],
        'prefixes': ['', '', ''],
        'ground_truths': [None, '1', '2'],
        'lengths': [10, 10, 10],
        'finished': [True, True, True],
    }


def test_batches_over_one_connection(service: Service) -> None:
    service.script = [by_number]
    reward = RemoteReward(service.url, batch_size=2)
    assert reward(THREE) == reward(THREE) == [0.0, 1.0, 2.0]
    assert [len(asked['prompts']) for asked in service.asked] == [2, 1, 2, 1]
    assert len(service.connections) == 1
    assert reward([]) == []
    reward.close()


@pytest.mark.parametrize(
    ('answer', 'message'),
    [
        ([1.0, 2.0], r'returned 2 number\(s\) for 3 completion\(s\)'),
        ([1.0, float('nan'), 2.0], 'gave nan to rows:1, not a finite number'),
        ([1.0, 2.0, float('-inf')], 'gave -inf to rows:2'),
        ([1.0, 'good', 2.0], 'gave str to rows:1'),
        ([[1.0], [2.0], [3.0]], 'gave list to rows:0'),
        (1.0, 'returned float, but should return a list'),
        (b'{"scores": [1, 2, 3]}', 'answered without "rewards"'),
        (b'[1, 2, 3]', 'answered without "rewards"'),
        (b'<html>', 'answered without "rewards"'),
        (b'\xff\xfe', 'answered without "rewards"'),
        ([1.0, 1e39, 2.0], r'gave 1e\+39 to rows:1, which float32 cannot hold'),
        ([1.0, 10**400, 2.0], 'gave a number to rows:1 that no float can hold'),
        (b'{"rewards": [1, 2, 1e400]}', 'gave inf to rows:2'),
        (400, 'answered 400: boom'),
        (404, 'answered 404: boom'),
    ],
)
def test_wrong_answers_end_at_once(service: Service, answer: object, message: str) -> None:
    service.script = [answer if isinstance(answer, (int, bytes)) else lambda _: answer]
    with pytest.raises(RewardError, match=f'^reward service http://127.0.0.1:{service.port}/get_reward {message}'):
        RemoteReward(service.url)(THREE)
    assert len(service.asked) == 1


@pytest.mark.parametrize(
    'failure',
    [500, 503, 429, 408, (408, 'soon'), None, lambda _: time.sleep(0.4)],
    ids=['500', '503', '429', '408', 'no time', 'silent', 'slow'],
)
def test_what_passes_is_asked_again(service: Service, failure: object, caplog: pytest.LogCaptureFixture) -> None:
    service.script = [failure, failure, by_number]
    with caplog.at_level(logging.WARNING, logger='align_anything'):
        assert RemoteReward(service.url, timeout=0.2, retries=2)(THREE) == [0.0, 1.0, 2.0]
    assert [record.args[-2:] for record in caplog.records] == [(1, 3), (2, 3)]
    assert 'prompt' not in caplog.text


def test_null_is_no_reward(service: Service) -> None:
    service.script = [[0, None, -1]]
    assert RemoteReward(service.url)(THREE) == [0.0, None, -1.0]


@pytest.mark.parametrize('status', [408, 429, 503])
@pytest.mark.parametrize('asked_for', ['20', 'date'])
def test_a_service_is_left_alone_as_long_as_it_asks(
    service: Service, status: int, asked_for: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr('time.sleep', pauses.append)
    in_a_while = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    service.script = [(status, in_a_while if asked_for == 'date' else asked_for), status, by_number]
    assert RemoteReward(service.url)(THREE) == [0.0, 1.0, 2.0]
    # A date is in whole seconds, and some of them are over; a tenth more keeps ranks apart.
    assert 15 < pauses[0] < 22.1 and pauses[1] < 0.1


def test_a_service_that_asks_for_too_long_ends_the_run(service: Service) -> None:
    service.script = [(503, '86400')]
    with pytest.raises(RewardError, match='asks to be left alone for 86400 s, longer than 600'):
        RemoteReward(service.url)(THREE)
    assert len(service.asked) == 1


HALF = 'so \ud83d'
ASKED = {'role': 'user', 'content': [{'type': 'text', 'text': 'Why?'}]}
CALLED = {'role': 'assistant', 'content': []}


@pytest.mark.parametrize(
    ('what', 'fields'),
    [
        ('the response', {'response': HALF}),
        ('the golden answer', {'ground_truth': HALF}),
        ('the prompt', {'prompt': HALF}),
        ('the prefix', {'prefix': HALF}),
        ('`tools` of the prompt', {'conversation': [{**ASKED, 'tools': [{'function': {'name': HALF}}]}]}),
        ('`tool_calls` of the prompt', {'conversation': [ASKED, {**CALLED, 'tool_calls': [{HALF: 1}]}]}),
        ('`reasoning_content` of the prompt', {'conversation': [ASKED, {**CALLED, 'reasoning_content': HALF}]}),
    ],
)
def test_half_a_character_is_named_before_anything_is_sent(service: Service, what: str, fields: dict) -> None:
    service.script = [by_number]
    asked = [*THREE, completion(source='rows:7', **fields)]
    with pytest.raises(RewardError, match=rf"^rows:7: {what} has '\\ud83d' in it, half of a surrogate pair"):
        RemoteReward(service.url, batch_size=1)(asked)
    assert service.asked == []


def test_what_does_not_pass_ends_with_the_reason(service: Service) -> None:
    service.script = [500]
    with pytest.raises(RewardError, match=r'failed 3 time\(s\) in a row, at last with status 500: boom'):
        RemoteReward(service.url, retries=2)(THREE)
    assert len(service.asked) == 3


def test_a_service_that_dies_and_comes_back(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    service.script = [by_number]
    reward = RemoteReward(service.url, retries=50)
    assert reward(THREE[:1]) == [0.0]
    service.stop()
    back: list[Service] = []

    def pause(_: float) -> None:
        if len(service.asked) == 1 and not back:
            back.append(Service(service.port))
            back[0].script = [by_number]

    monkeypatch.setattr('time.sleep', pause)
    assert reward(THREE) == [0.0, 1.0, 2.0]
    assert len(back[0].asked) == 1
    back[0].stop()


def test_a_service_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr('time.sleep', pauses.append)
    monkeypatch.setattr(posting, 'FIRST_DELAY', 8.0)
    gone = Service()
    gone.stop()
    with pytest.raises(RewardError) as caught:
        RemoteReward(gone.url.replace('//', '//user:secret@') + '?key=secret', retries=4)(THREE)
    assert str(caught.value).startswith(f'reward service {gone.url} failed 5 time(s) in a row, at last with ConnectErr')
    assert 'Check that it runs' in str(caught.value) and 'secret' not in str(caught.value)
    # Doubled each time, up to half a minute, and a random part of it left out.
    assert all(whole / 2 <= pause <= whole for pause, whole in zip(pauses, [8, 16, 30, 30], strict=True))


def test_pauses_leave_the_seeded_generator_alone(service: Service) -> None:
    import random

    service.script = [500, by_number]
    random.seed(3)
    expected = random.random()
    random.seed(3)
    RemoteReward(service.url)(THREE)
    assert random.random() == expected


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'url': 'localhost:6000'}, "'localhost:6000' is no address"),
        ({'url': 'http://a', 'timeout': 0}, 'must be above 0'),
        ({'url': 'http://a', 'retries': -1}, 'retries not below it'),
        ({'url': 'http://a', 'batch_size': 0}, 'a batch holds at least 1'),
    ],
)
def test_wrong_settings(options: dict, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        RemoteReward(**options)
