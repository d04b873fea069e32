"""Bodies of requests: what is taken, and what is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from align_anything.serve.errors import RequestError, openai_form
from align_anything.serve.omega import saved_array
from align_anything.serve.requests import ChatBody, ImagesBody, RewardsBody, SpeechBody, read_body

TURNS = [{'role': 'user', 'content': 'hi'}]


def chat(**given: Any) -> ChatBody:
    return read_body(ChatBody, json.dumps({'model': 'm', 'messages': TURNS, **given}).encode())


def refused(kind: Any, **given: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        read_body(kind, json.dumps(given).encode())
    return caught.value


@pytest.mark.parametrize(
    ('given', 'param', 'message'),
    [
        ({'frequency_penalty': 0.5}, 'frequency_penalty', 'does not obey frequency_penalty'),
        ({'logit_bias': {'5': 1}}, 'logit_bias', 'logit_bias'),
        ({'logprobs': True}, 'logprobs', 'logprobs'),
        ({'response_format': {'type': 'json_object'}}, 'response_format', 'response_format'),
        ({'parallel_tool_calls': False}, 'parallel_tool_calls', 'parallel_tool_calls'),
        ({'min_p': 0.1, 'best_of': 3}, 'min_p', 'min_p, best_of'),
        ({'reasoning_effort': 'high'}, 'reasoning_effort', 'reasoning_effort'),
        ({'temperature': 2.5}, 'temperature', 'less than or equal to 2'),
        ({'top_p': 0}, 'top_p', 'greater than 0'),
        ({'n': 0}, 'n', 'greater than or equal to 1'),
        ({'n': 1000}, 'n', 'less than or equal to 128'),
        ({'max_tokens': 0}, 'max_tokens', 'greater than or equal to 1'),
        ({'max_tokens': 3, 'max_completion_tokens': 4}, None, 'say two things'),
        ({'stop': ['']}, 'stop', 'a stop string is empty'),
        ({'stream_options': {'include_usage': True}}, None, 'stream_options are for stream: true'),
        ({'tool_choice': 'auto'}, None, 'there are no tools'),
        ({'tool_choice': 'required', 'tools': [{}]}, 'tool_choice', "'auto' or 'none'"),
        ({'messages': []}, 'messages', 'at least 1'),
        ({'messages': [{'role': 'bard', 'content': 'x'}]}, 'messages.0.role', "'system', 'developer'"),
        ({'messages': [{'role': 'user', 'content': 'x', 'weight': 2}]}, 'messages.0.weight', 'messages.0.weight'),
        (
            {'messages': [{'role': 'user', 'content': [{'type': 'image', 'image': '/etc/hostname'}]}]},
            'messages.0.content',
            'does not match any of the expected tags',
        ),
        (
            {'messages': [{'role': 'user', 'content': [{'type': 'text', 'text': 'x', 'path': '/etc/hostname'}]}]},
            'messages.0.content.text.path',
            'path',
        ),
    ],
)
def test_what_cannot_be_obeyed_is_named(given: dict[str, Any], param: str | None, message: str) -> None:
    error = refused(ChatBody, **{'model': 'm', 'messages': TURNS, **given})
    assert error.status == 400 and message in error.message
    if param is not None and '.content' not in param:
        assert error.param == param


def test_what_asks_for_nothing_is_taken() -> None:
    body = chat(
        frequency_penalty=0,
        presence_penalty=0.0,
        logprobs=False,
        logit_bias=None,
        n=None,
        stop=None,
        user='somebody',
        metadata={'a': 'b'},
        store=True,
        response_format={'type': 'text'},
        parallel_tool_calls=True,
    )
    assert body.n == 1 and body.stop == []
    assert chat(stop='x').stop == ['x'] and chat(max_completion_tokens=7).max_new_tokens == 7


@pytest.mark.parametrize('body', [b'', b'{', b'[' * 100_000, b'\xff\xfe', b'null', b'[]', b'"text"', b'7'])
def test_what_is_no_record_of_json_is_refused(body: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        read_body(ChatBody, body)
    assert caught.value.status == 400 and caught.value.message


def test_other_bodies_refuse_what_they_do_not_obey() -> None:
    assert refused(ImagesBody, prompt='x', size='512x512').param == 'size'
    assert refused(ImagesBody, prompt='x', response_format='url').param == 'response_format'
    assert (
        read_body(ImagesBody, b'{"prompt": "x", "size": "auto", "response_format": "b64_json", "steps": 3}').steps == 3
    )
    assert refused(SpeechBody, input='x', voice='alloy').param == 'voice'
    assert refused(SpeechBody, input='x', voice='default', speed=2).param == 'speed'
    assert read_body(SpeechBody, b'{"input": "x", "voice": "default"}').response_format == 'mp3'
    answered = [*TURNS, {'role': 'assistant', 'content': 'yes'}]
    assert len(read_body(RewardsBody, json.dumps({'messages': answered}).encode()).conversations) == 1
    assert 'nothing to judge' in refused(RewardsBody, conversations=[[*TURNS, *TURNS]]).message
    assert 'not both' in refused(RewardsBody, conversations=[answered], messages=answered).message


def test_problems_never_quote_what_was_sent() -> None:
    secret = 'my secret words'
    error = refused(ChatBody, model='m', messages=[{'role': 'user', 'content': {'x': secret}}], seed=secret)
    assert secret not in error.message


def test_errors_of_the_framework_get_the_form_too() -> None:
    assert openai_form(404, 'Not Found') == {
        'error': {'message': 'Not Found', 'type': 'invalid_request_error', 'param': None, 'code': None}
    }
    own = RequestError('no', status=503, code='overloaded').body
    assert openai_form(503, own['error']) == own and own['error']['type'] == 'overloaded_error'


@pytest.mark.parametrize(
    ('form', 'rate'), [('wav', 8000), ('mp3', 8000), ('flac', 8000), ('opus', 8000), ('pcm', 24000)]
)
@pytest.mark.parametrize('own', [8000, 7350])
def test_speech_in_every_form(form: str, rate: int, own: int) -> None:
    import io

    import numpy
    import soundfile

    from align_anything.core.types import Audio
    from align_anything.serve.made_media import audio_file

    sound = Audio((0.5 * numpy.sin(numpy.arange(own) / 5)).astype(numpy.float32), own)
    content = audio_file(sound, form)
    if form == 'pcm':
        samples, heard = numpy.frombuffer(content, '<i2') / 32768, rate
    else:
        samples, heard = soundfile.read(io.BytesIO(content))
    assert heard == (own if form in ('wav', 'flac') else rate)
    assert abs(len(samples) / heard - 1) < 0.15 and 0.3 < samples.std() < 0.4


def test_a_saved_array_is_read_without_trusting_it() -> None:
    import io

    import numpy

    def saved(array: numpy.ndarray, **how: Any) -> bytes:
        file = io.BytesIO()
        numpy.save(file, array, **how)
        return file.getvalue()

    for array in (numpy.arange(5, dtype=numpy.float32), numpy.ones((2, 7), order='F'), numpy.arange(4, dtype='int16')):
        assert numpy.array_equal(saved_array(saved(array)), array)
    zipped = io.BytesIO()
    numpy.savez(zipped, a=numpy.ones(3))
    huge = saved(numpy.ones(1, dtype=numpy.float32)).replace(b"'shape': (1,)", b"'shape': (9999999999,)")
    for bad in (
        b'',
        b'RIFF',
        zipped.getvalue(),
        huge[:128],
        saved(numpy.array([{'a': 1}], dtype=object), allow_pickle=True),
        saved(numpy.array(['text'])),
        saved(numpy.ones(5))[:-3],
    ):
        with pytest.raises(RequestError, match='no array of numbers'):
            saved_array(bad)
