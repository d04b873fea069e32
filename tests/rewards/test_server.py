"""The service, really listening, asked by the client and by hand."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx2
import numpy
import pytest
from PIL import Image

from align_anything.core.errors import DataError, RewardError
from align_anything.core.types import Audio, Embedding, Video
from align_anything.rewards import server
from align_anything.rewards.base import get_reward
from align_anything.rewards.messages import from_json, text_of, to_json
from align_anything.rewards.remote import RemoteReward
from tests.harness.ranks import free_port
from tests.rewards.common import completion, served


def inspecting(completions: list) -> list[float]:
    """A number made of the width of the image, the frames of the video and the first sample of the audio."""
    found = []
    for one in completions:
        media = {part['type']: part.get(part['type']) for turn in one.conversation for part in turn['content']}
        if media.get('image') is None:
            found.append(-1.0)
        else:
            found.append(
                media['image'].width + 100 * len(media['video'].frames) + 1000 * float(media['audio'].samples[0])
            )
    return found


def raising(completions: list) -> list[float]:
    raise KeyError(completions[0].response)


OPTIONS = {
    'exact_match': {'extract': None, 'ignore_case': True, 'ignore_whitespace': True},
    'length': {'max_length': 10, 'cache': 5},
    'math_verifier': {},
}


@pytest.fixture(scope='module')
def urls() -> Iterator[dict[str, str]]:
    """One server with an application under the name of each reward."""
    from fastapi import FastAPI

    app = FastAPI()
    golden = {'Capital of France?': 'Paris'}
    for name, options in OPTIONS.items():
        app.mount(f'/{name}', server.make_app(name, get_reward(name), options, golden))
    for function in (inspecting, raising):
        app.mount(f'/{function.__name__}', server.make_app(function.__name__, function, {}))
    with served(app) as address:
        yield {name: f'{address}/{name}' for name in (*OPTIONS, 'inspecting', 'raising')}


def ask(url: str, **question: object) -> tuple[int, dict]:
    answer = httpx2.post(f'{url}/get_reward', json=question)
    return answer.status_code, answer.json()


def test_health(urls: dict[str, str]) -> None:
    assert httpx2.get(f'{urls["length"]}/health').json() == {'status': 'ok', 'reward': 'length'}


@pytest.mark.parametrize('key', ['ground_truths', 'golden_responses'])
def test_golden_answers_of_the_question(urls: dict[str, str], key: str) -> None:
    question = {'prompts': ['2+2?', 'Capital of France?'], 'responses': ['4', 'Rome'], key: ['4', 'Rome']}
    assert ask(urls['exact_match'], **question) == (200, {'rewards': [1.0, 1.0]})


def test_golden_answers_of_the_data_by_the_exact_prompt(urls: dict[str, str]) -> None:
    found = ask(urls['exact_match'], prompts=[' Capital of France?\n'], responses=['paris'], ground_truths=[None])
    assert found == (200, {'rewards': [1.0]})
    # Close to a prompt of the data is not that prompt.
    status, answer = ask(urls['exact_match'], prompts=['Capital of Franconia?'], responses=['Paris'])
    assert status == 400
    assert 'completion 1 of the request has no golden answer' in answer['error']
    assert 'send ground_truths, or start the service with --dataset' in answer['error']


def test_lengths(urls: dict[str, str]) -> None:
    question = {'prompts': ['a', 'b'], 'responses': ['one two', 'one two']}
    assert ask(urls['length'], **question, lengths=[5, 20]) == (200, {'rewards': [0.0, -1.0]})
    assert ask(urls['length'], **question) == (200, {'rewards': [0.0, 0.0]})


@pytest.mark.parametrize(
    ('question', 'message'),
    [
        ({'prompts': ['a']}, 'body.responses: Field required'),
        ({'prompts': ['a'], 'responses': []}, 'responses has 0 entries for 1 prompts'),
        ({'prompts': ['a'], 'responses': ['b'], 'finished': [True, True]}, 'finished has 2 entries for 1 prompts'),
        ({'prompts': 'a', 'responses': 'b'}, 'body.prompts: Input should be a valid list'),
        (
            {'prompts': ['a'], 'responses': ['b'], 'conversations': [[{'role': 'user', 'content': [{'type': 'x'}]}]]},
            'a part that is neither text nor one of image',
        ),
    ],
)
def test_wrong_questions(urls: dict[str, str], question: dict, message: str) -> None:
    status, answer = ask(urls['length'], **question)
    assert status == 400 and message in answer['error']


def test_failures_are_told_to_the_client_and_not_to_the_log(
    urls: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger='align_anything'):
        status, answer = ask(urls['raising'], prompts=['my secret'], responses=['my secret'])
    assert status == 500 and "reward 'raising' failed on completion 1 of the request: KeyError" in answer['error']
    assert caplog.messages == ["reward 'raising' failed with KeyError"]
    with pytest.raises(RewardError, match=r'at last with status 500: reward .raising. failed on completion 1'):
        RemoteReward(f'{urls["raising"]}/get_reward', retries=0)([completion()])


def test_mathematics_from_the_client(urls: dict[str, str]) -> None:
    reward = RemoteReward(f'{urls["math_verifier"]}/get_reward', batch_size=1)
    tagged = '<think>a</think>\n<answer> $27$ </answer>'
    assert reward([completion(tagged, '$27$'), completion('28', '$27$')]) == [1.5, 0.0]


MIXED = [
    {
        'role': 'user',
        'content': [
            {'type': 'image', 'image': Image.new('RGB', (40, 30), 'red')},
            {'type': 'video', 'video': Video(numpy.zeros((2, 8, 8, 3), numpy.uint8), numpy.arange(2.0), 1.0)},
            {'type': 'audio', 'audio': Audio(numpy.linspace(0.5, 0, 1600, dtype=numpy.float32), 16000)},
            {'type': 'text', 'text': 'What '},
            {'type': 'text', 'text': 'is it?'},
        ],
    }
]


def test_media_go_along_when_asked_for(urls: dict[str, str]) -> None:
    asked = [completion(conversation=MIXED)]
    url = f'{urls["inspecting"]}/get_reward'
    assert RemoteReward(url, send_media=True)(asked) == [40 + 200 + 500]
    assert RemoteReward(url)(asked) == [-1.0]


def test_media_come_back_as_they_were() -> None:
    assert text_of(MIXED) == 'What is it?'
    image, video, audio, *_ = from_json(json.loads(json.dumps(to_json(MIXED, True))))[0]['content']
    assert image['image'].tobytes() == MIXED[0]['content'][0]['image'].tobytes()
    assert video['video'].frames.shape == (2, 8, 8, 3)
    sent = MIXED[0]['content'][2]['audio']
    assert audio['audio'].rate == sent.rate and numpy.array_equal(audio['audio'].samples, sent.samples)


def test_an_embedding_stays_a_placeholder() -> None:
    turn = {'role': 'user', 'content': [{'type': 'video', 'video': Embedding(numpy.ones(3, numpy.float32))}]}
    assert to_json([turn], True)[0]['content'] == [{'type': 'video'}]


@pytest.mark.parametrize('source', ['/etc/hostname', 'file:///etc/hostname', 'http://localhost/a.png', ['a.png'], 7])
def test_nothing_is_read_on_the_machine_of_the_service(urls: dict[str, str], source: object) -> None:
    messages = [{'role': 'user', 'content': [{'type': 'image', 'image': source}]}]
    status, answer = ask(urls['length'], prompts=['a'], responses=['b'], conversations=[messages])
    assert (status, answer) == (400, {'error': 'a message has image media that are no data URI.'})


def test_golden_answers_from_files(tmp_path: Path) -> None:
    one, other = tmp_path / 'one.jsonl', tmp_path / 'other.json'
    one.write_text('{"question": " 1+1? ", "answer": 2}\n{"prompt": "1+2?", "answer": "3"}\n')
    other.write_text('[{"question": "1+1?", "answer": "2"}]')
    assert server.golden_answers([str(one), str(other)]) == {'1+1?': '2', '1+2?': '3'}
    other.write_text('[{"question": "1+1?", "answer": "3"}]')
    with pytest.raises(DataError, match='other.json:1 has another answer to a prompt that stood before it'):
        server.golden_answers([str(one), str(other)])
    other.write_text('[{"question": "1+1?"}]')
    with pytest.raises(DataError, match="other.json:1 gives no golden answer: the row has no column 'answer'"):
        server.golden_answers([str(other)])


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--reward', 'example_maths'], "unknown reward 'example_maths'. Did you mean 'example_math'?"),
        (['--reward', 'length'], "reward 'length' needs the option 'max_length'"),
        (['--reward', 'regex', '--options', 'x'], "--options is 'x', but should be a mapping"),
        (['--reward', 'math', '--dataset', 'nowhere.jsonl'], "'nowhere.jsonl' doesn't exist"),
    ],
)
def test_what_is_wrong_is_said_before_it_serves(
    arguments: list[str], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(SystemExit) as ended, caplog.at_level(logging.ERROR, logger='align_anything'):
        server.main(arguments)
    assert ended.value.code == 2 and message in caplog.text


def test_a_port_in_use_is_said_before_anything_is_read(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(('127.0.0.1', 0)) as other, caplog.at_level(logging.ERROR, logger='align_anything'):
        port = other.getsockname()[1]
        with pytest.raises(SystemExit) as ended:
            server.main(['--reward', 'math', '--dataset', 'nowhere.jsonl', '--port', str(port)])
    assert ended.value.code == 2 and f'port {port} is in use on 127.0.0.1' in caplog.text
    assert 'nowhere' not in caplog.text


def test_it_serves_until_it_is_stopped() -> None:
    port = free_port()
    process = os.fork()
    if process == 0:
        try:
            server.main(['--reward', 'format', '--port', str(port)])
        except SystemExit as ended:
            os._exit(ended.code)
        finally:
            os._exit(99)
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with suppress(httpx2.TransportError):
                assert httpx2.get(f'http://127.0.0.1:{port}/health').json()['reward'] == 'format'
                break
            time.sleep(0.05)
        os.kill(process, signal.SIGINT)
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    except BaseException:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        raise


def test_without_the_web_server_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, 'uvicorn', None)
    with pytest.raises(SystemExit), caplog.at_level(logging.ERROR, logger='align_anything'):
        server.main(['--reward', 'format'])
    assert "the reward service needs uvicorn: pip install 'align-anything[serve]'" in caplog.text


def test_tools_calls_and_thoughts_reach_the_function_as_they_are(urls: dict[str, str]) -> None:
    call = {'id': 'c1', 'type': 'function', 'function': {'name': 'add', 'arguments': {'a': 2}}}
    asked = completion(
        'It is 5.',
        conversation=[
            {'role': 'user', 'content': [{'type': 'text', 'text': '2 + 3?'}], 'tools': [{'type': 'function'}]},
            {'role': 'assistant', 'content': [], 'tool_calls': [call], 'reasoning_content': 'I add.'},
            {'role': 'tool', 'content': [{'type': 'text', 'text': '5'}], 'tool_call_id': 'c1', 'name': 'add'},
        ],
    )
    told: list = []

    def seen(completions: list) -> list[float]:
        told.extend(one.conversation for one in completions)
        return [1.0] * len(completions)

    with served(server.make_app('seen', seen, {})) as address:
        assert RemoteReward(f'{address}/get_reward')([asked]) == [1.0]
    assert told == [asked.conversation]
