"""A judge behind an endpoint of OpenAI's form: what it is asked, in both orders, what it says, and what goes wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from align_anything.core.errors import RewardError, SettingsError
from align_anything.metrics.base import Measured, make_metrics
from align_anything.metrics.judging import FILE, verdict_of, worth_of
from align_anything.rewards import posting
from tests.metrics.common import samples_of
from tests.serve.common import Parrot, listening, parrot_server

KEY = 'sk-very-secret'


class Judge:
    """An endpoint that says what `says` makes of the text of the last message."""

    def __init__(self, says: Callable[[str], Any]) -> None:
        self.says, self.asked, self.keys = says, [], []
        judge = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_POST(self) -> None:
                content = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
                judge.asked.append(content)
                judge.keys.append(self.headers['Authorization'])
                said = content['messages'][-1]['content']
                said = said if isinstance(said, str) else ''.join(part.get('text', '') for part in said)
                answer = judge.says(said)
                status = 200 if isinstance(answer, str) else 401
                body = {'choices': [{'message': {'content': answer}}]} if status == 200 else answer
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header('Content-Length', str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self.server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self.server.server_address[1]}/v1'
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def judge_that(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Judge]]:
    monkeypatch.setattr(posting, 'FIRST_DELAY', 0.01)
    monkeypatch.setenv('OPENAI_API_KEY', KEY)
    started: list[Judge] = []

    def start(says: Callable[[str], Any]) -> Judge:
        started.append(Judge(says))
        return started[-1]

    yield start
    for judge in started:
        judge.server.shutdown()
        judge.server.server_close()


def judged(folder: Path, judge: Judge, ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> Measured:
    (metric,) = make_metrics(['judge'], {'judge': {'url': judge.url, 'model': 'm', 'workers': 2, 'retries': 1}})
    return metric.measure(samples_of(folder / 'a', *ours), samples_of(folder / 'b', *theirs))


def prefers(word: str) -> Callable[[str], str]:
    def says(text: str) -> str:
        first, second = (word in part for part in text.split('Answer A:')[1].split('Answer B:'))
        return '[[C]]' if first == second else '[[A]]' if first else 'I said [[A]] first, but no: [[B]]'

    return says


def test_what_it_prefers_wins_in_both_orders(judge_that: Callable[..., Judge], tmp_path: Path) -> None:
    judge = judge_that(prefers('good'))
    ours = [{'says': ['good']}, {'says': ['bad']}, {'says': ['good too']}, {'says': ['x']}]
    theirs = [{'says': ['bad']}, {'says': ['good']}, {'says': ['good']}]
    found = judged(tmp_path, judge, ours, theirs)
    assert found.values == [1.0, 0.0, 0.5, None]
    assert found.details == {'ties': 1, 'orders_agree': 3, 'unparsed': 0, 'not_compared': 1}
    assert len(judge.asked) == 6 and {*judge.keys} == {f'Bearer {KEY}'}
    asked = judge.asked[0]
    assert asked['model'] == 'm' and asked['temperature'] == 0 and asked['messages'][0]['role'] == 'system'
    assert 'question' in asked['messages'][1]['content']


def test_a_liking_for_the_first_answer_falls_out(judge_that: Callable[..., Judge], tmp_path: Path) -> None:
    found = judged(tmp_path, judge_that(lambda text: '[[A]]'), [{'says': ['x']}], [{'says': ['y']}])
    assert found.values == [0.5]


def test_nothing_is_asked_twice(judge_that: Callable[..., Judge], tmp_path: Path) -> None:
    judge = judge_that(prefers('good'))
    both = [{'says': ['good']}], [{'says': ['bad']}]
    first = judged(tmp_path, judge, *both)
    file = tmp_path / 'a' / FILE
    file.write_text(file.read_text() + '{"asked": "cut o')
    assert judged(tmp_path, judge, *both) == first and len(judge.asked) == 2
    assert KEY not in file.read_text() and file.read_text().count('\n') == 2


def test_what_has_no_verdict_is_counted_and_left_out(judge_that: Callable[..., Judge], tmp_path: Path) -> None:
    judge = judge_that(lambda text: 'Well.' if 'odd' in text else '[[B]]')
    found = judged(tmp_path, judge, [{'says': ['odd']}, {'says': ['x']}], [{'says': ['y']}, {'says': ['y']}])
    assert found.values == [None, 0.5] and found.details['unparsed'] == 2


def test_pictures_are_sent_along(judge_that: Callable[..., Judge], tmp_path: Path) -> None:
    judge, picture = judge_that(lambda text: '[[C]]'), Image.new('RGB', (4, 4), 'red')
    judged(tmp_path, judge, [{'media': [picture]}], [{'media': [picture]}])
    kinds = [part['type'] for part in judge.asked[0]['messages'][1]['content']]
    assert kinds == ['text', 'image_url', 'text', 'image_url']


def test_a_refusal_says_why_and_not_the_key(judge_that: Callable[..., Judge], tmp_path: Path) -> None:
    judge = judge_that(lambda text: {'error': f'wrong key {KEY}'})
    with pytest.raises(RewardError, match='answered 401: wrong key …') as found:
        judged(tmp_path, judge, [{'says': ['x']}], [{'says': ['y']}])
    assert KEY not in str(found.value)
    with pytest.raises(SettingsError, match='is no address'):
        judge.url = 'localhost:8000'
        judged(tmp_path, judge, [{'says': ['x']}], [{'says': ['y']}])


def test_a_server_of_ours_judges(tmp_path: Path) -> None:
    with listening(parrot_server(Parrot(say=prefers('good')))) as url:
        options = {'url': f'{url}/v1', 'model': 'parrot', 'workers': 2}
        (metric,) = make_metrics(['judge'], {'judge': options})
        ours = samples_of(tmp_path / 'a', {'says': ['good']}, {'says': ['bad']})
        found = metric.measure(ours, samples_of(tmp_path / 'b', {'says': ['bad']}, {'says': ['worse']}))
    assert found.values == [1.0, 0.5] and found.details['unparsed'] == 0


def test_verdicts() -> None:
    assert [verdict_of(text) for text in ('[[A]]', '[[A]] … [[C]]', '[A]', '')] == ['A', 'C', None, None]
    assert [worth_of(*pair) for pair in (('A', 'B'), ('B', 'A'), ('A', 'A'), ('A', 'C'), ('A', None))] == [
        1.0, 0.0, 0.5, 0.75, None,
    ]  # fmt: skip
