"""The server, really listening, over a model that says back what it hears: the real client, and clients that err."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import httpx2
import openai
import pytest

from align_anything.core.asgi import bound_socket, serve_app
from align_anything.serve.app import Server, make_app
from align_anything.serve.door import Keys
from tests.harness.ranks import free_port
from tests.serve.common import Parrot, asked, client, limits, listening, parrot_server

KEY = 'my-very-secret-key'
TOOL = {'type': 'function', 'function': {'name': 'f', 'parameters': {'type': 'object', 'properties': {}}}}
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
FORM = {'message', 'type', 'param', 'code'}


@pytest.fixture(scope='module')
def url() -> Iterator[str]:
    with listening(parrot_server(limits=limits(body=20_000))) as address:
        yield address


def post(url: str, body: Any, path: str = '/v1/chat/completions', **headers: str) -> httpx2.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx2.post(f'{url}{path}', content=content, headers={'Content-Type': 'application/json', **headers})


def check_error(answer: httpx2.Response, status: int, words: str = '') -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()['error']
    assert set(error) == FORM and words in error['message'], error


def said(url: str, text: str, **more: Any) -> str:
    found = client(url).chat.completions.create(model='parrot', messages=asked(text), **more)
    return found.choices[0].message.content


def test_a_conversation_whole_and_streamed(url: str) -> None:
    assert said(url, 'hello') == 'hello'
    found = client(url).chat.completions.create(model='parrot', messages=asked('hello'), n=2)
    assert [choice.message.content for choice in found.choices] == ['hello'] * 2
    assert found.usage.model_dump(exclude_none=True) == {
        'prompt_tokens': 5,
        'completion_tokens': 10,
        'total_tokens': 15,
    }
    stream = client(url).chat.completions.create(
        model='parrot', messages=asked('hello'), n=2, stream=True, stream_options={'include_usage': True}
    )
    chunks = list(stream)
    texts = ['', '']
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ''
    assert texts == ['hello'] * 2 and chunks[-1].usage.completion_tokens == 10
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-2:] == ['stop', 'stop']
    assert len({chunk.id for chunk in chunks}) == 1


def test_tool_calls_whole_and_streamed(url: str) -> None:
    found = client(url).chat.completions.create(model='parrot', messages=asked(f'Look. {CALL}'), tools=[TOOL])
    (choice,) = found.choices
    assert choice.finish_reason == 'tool_calls' and choice.message.content == 'Look.'
    assert json.loads(choice.message.tool_calls[0].function.arguments) == {'a': 1}
    stream = client(url).chat.completions.create(
        model='parrot', messages=asked(f'Look. {CALL}'), tools=[TOOL], stream=True
    )
    deltas = [(chunk.choices[0].delta, chunk.choices[0].finish_reason) for chunk in stream]
    assert ''.join(delta.content or '' for delta, _ in deltas) == 'Look.' and deltas[-1][1] == 'tool_calls'
    (call,) = [call for delta, _ in deltas for call in delta.tool_calls or []]
    assert call.function.name == 'f' and call.id.startswith('call_')
    assert said(url, CALL, tools=[TOOL], tool_choice='none') == CALL
    assert said(url, CALL) == CALL, 'without tools there are no calls'


def test_models_health_and_metrics(url: str) -> None:
    (model,) = client(url).models.list().data
    assert (model.id, model.owned_by) == ('parrot', 'align-anything')
    assert client(url).models.retrieve('parrot').id == 'parrot'
    with pytest.raises(openai.NotFoundError, match="no model 'crow'"):
        client(url).models.retrieve('crow')
    assert httpx2.get(f'{url}/health').json() == {'status': 'ok', 'models': ['parrot']}
    said(url, 'counted')
    told = httpx2.get(f'{url}/metrics')
    assert told.headers['content-type'].startswith('text/plain')
    values = dict(line.rsplit(' ', 1) for line in told.text.splitlines() if not line.startswith('#'))
    assert float(values['align_anything_requests_total{path="/v1/chat/completions",status="200"}']) > 0
    assert float(values['align_anything_generated_tokens_total']) >= len('counted')
    assert float(values['align_anything_waiting']) == 0 and float(values['align_anything_batch_responses_count']) > 0
    httpx2.get(f'{url}/my-secret-path')
    assert 'my-secret-path' not in httpx2.get(f'{url}/metrics').text, 'unknown paths are counted as one'


def test_bad_requests_get_one_error_of_openais_form(url: str) -> None:
    good = {'model': 'parrot', 'messages': asked('x')}
    check_error(post(url, {**good, 'model': 'crow'}), 404, "no model 'crow'")
    check_error(post(url, {**good, 'presence_penalty': 1}), 400, 'presence_penalty')
    check_error(post(url, b'{"model": '), 400, 'no JSON')
    check_error(post(url, b'x' * 30_000), 413, 'larger than the 20000 bytes')
    check_error(httpx2.post(f'{url}/v1/chat/completions', data={'model': 'x'}), 415, 'application/json')
    check_error(httpx2.get(f'{url}/v1/chat/completions'), 405)
    check_error(httpx2.get(f'{url}/nothing'), 404)
    check_error(post(url, {'prompt': 'x'}, '/v1/images/generations'), 400, 'writes text, but no image')
    check_error(post(url, {'input': 'x'}, '/v1/audio/speech'), 400, 'writes text, but no audio')
    check_error(post(url, {'audio_data': 'x', 'sample_rate': 16000}, '/api/v1/v2v'), 400, 'no audio')
    check_error(post(url, {'audio_data': 'x', 'sample_rate': 16000}, '/api/v1/v2t'), 400, 'reads no audio')
    check_error(post(url, {'messages': asked('x')}, '/v1/rewards'), 404, 'no reward model')
    image = [{'type': 'image_url', 'image_url': {'url': 'data:image/png;base64,AAAA'}}]
    check_error(post(url, {**good, 'messages': [{'role': 'user', 'content': image}]}), 400, 'reads text alone')
    chunked = httpx2.post(
        f'{url}/v1/chat/completions',
        content=(b'y' * 1000 for _ in range(50)),
        headers={'Content-Type': 'application/json'},
    )
    check_error(chunked, 413)
    with pytest.raises(openai.BadRequestError) as caught:
        client(url).chat.completions.create(**good, seed=5, logprobs=True)
    assert caught.value.param == 'logprobs' and caught.value.code == 'unsupported_parameter'


def test_half_a_surrogate_pair_breaks_nothing(url: str) -> None:
    for body in (
        b'{"model": "\\ud83d", "messages": [{"role": "user", "content": "x"}]}',
        b'{"model": "parrot", "messages": [{"role": "user", "content": "x"}], "\\ud83d": 1}',
    ):
        answer = post(url, body)
        assert answer.status_code in (400, 404) and set(answer.json()['error']) == FORM
    answer = post(url, b'{"model": "parrot", "messages": [{"role": "user", "content": "\\ud83d"}]}')
    assert answer.status_code in (200, 400)
    assert said(url, 'alive') == 'alive'


def test_a_key_is_asked_for_and_never_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), listening(parrot_server(keys=Keys([KEY]))) as url:
        body = {'model': 'parrot', 'messages': asked('x')}
        for headers in ({}, {'Authorization': 'Bearer wrong-key-entirely'}, {'Authorization': f'Basic {KEY}'}):
            answer = post(url, body, **headers)
            check_error(answer, 401, 'no API key, or a wrong one')
            assert answer.headers['www-authenticate'] == 'Bearer'
        check_error(httpx2.get(f'{url}/metrics'), 401)
        check_error(post(url, b'x' * 10, '/api/v1/v2t'), 401)
        assert httpx2.get(f'{url}/health').status_code == httpx2.get(f'{url}/api/v1/health').status_code == 200
        with pytest.raises(openai.AuthenticationError):
            said(url, 'x')
        assert client(url, KEY).chat.completions.create(**body).choices[0].message.content == 'x'
    assert KEY not in caplog.text and 'wrong-key-entirely' not in caplog.text


def test_a_page_of_another_host_is_refused_where_only_this_machine_may_ask(url: str) -> None:
    check_error(httpx2.get(f'{url}/v1/models', headers={'Host': 'evil.example:8000'}), 403, 'this machine alone')
    for name in ('localhost', '127.0.0.1:1234', '[::1]:80', 'LOCALHOST:1'):
        assert httpx2.get(f'{url}/v1/models', headers={'Host': name}).status_code == 200
    with listening(Server('parrot', Parrot(), host='0.0.0.0')) as other:
        assert httpx2.get(f'{other}/v1/models', headers={'Host': 'node1'}).status_code == 200


def test_a_full_queue_and_a_late_answer_say_so() -> None:
    slow = Parrot(pause=0.05)
    with listening(parrot_server(slow, limits=limits(batch_size=1, queue_size=1, seconds=2))) as url:
        with ThreadPoolExecutor(8) as pool:
            body = {'model': 'parrot', 'messages': asked('eight chars!')}
            answers = list(pool.map(lambda _: post(url, body), range(8)))
        codes = sorted(answer.status_code for answer in answers)
        assert set(codes) == {200, 503} and codes.count(200) in (1, 2)
        full = next(answer for answer in answers if answer.status_code == 503)
        check_error(full, 503, 'too many requests wait')
        assert full.headers['retry-after'] == '1'
        check_error(post(url, {'model': 'parrot', 'messages': asked('x' * 100)}), 504, 'not there after 2 s')
        with pytest.raises(openai.APIError, match='not there after'):
            list(client(url).chat.completions.create(model='parrot', messages=asked('x' * 100), stream=True))
        assert said(url, 'alive') == 'alive'


def test_a_client_that_leaves_ends_its_answer() -> None:
    slow = Parrot(pause=0.02)
    with listening(parrot_server(slow, limits=limits(batch_size=1))) as url:
        stream = client(url).chat.completions.create(model='parrot', messages=asked('x' * 500), stream=True)
        next(iter(stream))
        stream.close()
        with suppress(httpx2.TimeoutException):
            body = {'model': 'parrot', 'messages': asked('y' * 500)}
            httpx2.post(f'{url}/v1/chat/completions', json=body, timeout=0.3)
        begun = time.monotonic()
        assert said(url, 'next') == 'next'
        assert time.monotonic() - begun < 5 and slow.letters < 200


def test_what_fails_in_the_model_is_told_without_what_was_said(caplog: pytest.LogCaptureFixture) -> None:
    def failing(text: str) -> str:
        if text == 'my secret':
            raise RuntimeError(text)
        return text

    with caplog.at_level(logging.DEBUG), listening(parrot_server(Parrot(say=failing))) as url:
        body = {'model': 'parrot', 'messages': asked('my secret')}
        check_error(post(url, body), 500, 'RuntimeError in the server')
        check_error(post(url, {**body, 'stream': True}), 500, 'RuntimeError in the server')
        assert said(url, 'alive') == 'alive'
    assert 'my secret' not in caplog.text and 'RuntimeError' in caplog.text


def test_connections_that_send_nothing_or_half_a_head_are_dropped() -> None:
    with listening(parrot_server(limits=limits(seconds=1.0)), head_seconds=0.4) as url:
        port = int(url.rpartition(':')[2])
        openings = [b'', b'POST /v1/chat', b'GET /health HTTP/1.1\r\nHost: localhost\r\nX: ']
        opened = [socket.create_connection(('127.0.0.1', port)) for _ in range(60)]
        for number, one in enumerate(opened):
            one.sendall(openings[number % 3])
        half = socket.create_connection(('127.0.0.1', port))
        head = b'POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n'
        half.sendall(head + b'Content-Length: 100\r\n\r\n{"model"')
        assert said(url, 'meanwhile') == 'meanwhile'
        for one in opened:
            one.settimeout(5)
            with suppress(ConnectionResetError):
                assert one.recv(100) == b''
        half.settimeout(5)
        assert half.recv(1000).startswith(b'HTTP/1.1 408')
        kept = socket.create_connection(('127.0.0.1', port))
        kept.sendall(b'GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /heal')
        assert kept.recv(1000).startswith(b'HTTP/1.1 200')
        kept.settimeout(5)
        with suppress(ConnectionResetError):
            while kept.recv(1000):
                pass
        assert said(url, 'alive') == 'alive'


def test_two_hundred_clients_at_once() -> None:
    parrot = Parrot(pause=0.001)
    with listening(parrot_server(parrot, limits=limits(batch_size=16, queue_size=64))) as url:
        with (
            httpx2.Client(limits=httpx2.Limits(max_connections=200), timeout=60) as one,
            ThreadPoolExecutor(200) as pool,
        ):

            def ask(number: int) -> tuple[int, int, Any]:
                body = {'model': 'parrot', 'messages': asked(f'number {number}')}
                answer = one.post(f'{url}/v1/chat/completions', json=body)
                return number, answer.status_code, answer.json()

            found = list(pool.map(ask, range(200)))
        for number, status, answer in found:
            if status == 200:
                assert answer['choices'][0]['message']['content'] == f'number {number}'
            else:
                assert status == 503 and answer['error']['code'] == 'overloaded'
        answered = sum(status == 200 for _, status, _ in found)
        assert answered >= 65 and sum(parrot.batches) == answered
        # Who comes again, as the answer says, is answered.
        retrying = openai.OpenAI(base_url=f'{url}/v1', api_key='x', max_retries=8)
        assert retrying.chat.completions.create(model='parrot', messages=asked('z')).choices[0].message.content == 'z'


@contextmanager
def process_of(port: int, pause: float = 0.05) -> Iterator[int]:
    """A server in a process of its own, which answers one by one; it is left when the context ends, if not before."""
    process = os.fork()
    if process == 0:
        try:
            with bound_socket('127.0.0.1', port) as bound:
                server = parrot_server(Parrot(pause=pause), limits=limits(batch_size=1))
                serve_app(make_app(server), bound)
        finally:
            os._exit(1)
    try:
        for _ in range(200):
            with suppress(httpx2.TransportError):
                if httpx2.get(f'http://127.0.0.1:{port}/health').status_code == 200:
                    break
            time.sleep(0.05)
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


def test_sigterm_finishes_what_runs() -> None:
    port = free_port()
    url, answers = f'http://127.0.0.1:{port}', []
    with process_of(port) as process:
        threads = [
            threading.Thread(target=lambda text=text: answers.append(said(url, text))) for text in ('a' * 20, 'b' * 20)
        ]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        os.kill(process, signal.SIGTERM)
        time.sleep(0.3)
        with pytest.raises(httpx2.TransportError):
            httpx2.get(f'{url}/health')
        for thread in threads:
            thread.join(30)
        assert sorted(answers) == ['a' * 20, 'b' * 20], 'the one that runs and the one that waits'


@pytest.mark.extended
def test_what_a_killed_server_owed_the_next_one_answers() -> None:
    port = free_port()
    url, texts = f'http://127.0.0.1:{port}', [letter * 20 for letter in 'abcdefgh']
    patient = openai.OpenAI(base_url=f'{url}/v1', api_key='x', max_retries=20)

    def ask(text: str) -> str:
        answer = patient.chat.completions.create(model='parrot', messages=asked(text))
        return answer.choices[0].message.content

    with ThreadPoolExecutor(9) as pool:
        with process_of(port) as process:
            answers = [pool.submit(ask, text) for text in texts]
            hasty = pool.submit(said, url, 'x' * 20)
            time.sleep(0.5)
            os.kill(process, signal.SIGKILL)
            with pytest.raises(openai.APIConnectionError):
                hasty.result(10)
            assert not any(answer.done() for answer in answers)
        with process_of(port, pause=0.0):
            assert [answer.result(60) for answer in answers] == texts
