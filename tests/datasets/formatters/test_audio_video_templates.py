"""Each hook of each audio and video template, on a row in its own columns, gives exactly this conversation."""

from __future__ import annotations

from typing import Any

import pytest

from align_anything.core.errors import SampleError
from align_anything.datasets.template_registry import make_formatter

SOUND = {'bytes': b'RIFF', 'path': 'a.wav'}
"""Formatters hand media on without looking at them."""


def asked(kind: str, text: str) -> dict[str, Any]:
    return {'role': 'user', 'content': [{'type': kind}, {'type': 'text', 'text': text}]}


def assistant(text: str) -> dict[str, Any]:
    return {'role': 'assistant', 'content': text}


RANKED = {'prompt': 'What?', 'response_1': 'A cat.', 'response_2': 'A dog.', 'overall_response': 2}
ANSWERED = {'prompt': 'What?', 'response': 'A dog.'}
TA2T, TV2T = {'audio_path': 'a.wav', **RANKED}, {'video_path': 'a.mp4', **RANKED}
TA2T_LLF = {'audio': SOUND, 'prompt': 'What?', 'response': 'A cat.', 'refinement': 'A dog.'}
QWEN = {'video_path': 'a.mp4', 'prompt': 'What?', 'better_output': 'A dog.', 'worse_output': 'A cat.'}
QWEN_SFT = {'video_path': 'a.mp4', 'prompt': 'What?', 'output': 'A dog.'}
CAPS = {'audiocap_path': 'a.wav', 'caption': 'A dog barks.'}
LIBRI = {'audio': SOUND, 'text': 'HELLO WORLD'}
AUDIO_SET = {'audio': SOUND, 'captions': ['A dog barks.', 'A car passes.']}
OPEN_AQA = {'audio_id': 'a.flac', 'instruction': 'What?', 'output': 'A dog.'}

HEARD_DOG, HEARD_CAT = ([asked('audio', 'What?'), assistant(answer)] for answer in ('A dog.', 'A cat.'))
SEEN_DOG, SEEN_CAT = ([asked('video', 'What?'), assistant(answer)] for answer in ('A dog.', 'A cat.'))
ASK = {'requests': ['Say it.']}

SUPERVISED = [
    ('AA_TA2T', {}, TA2T, HEARD_DOG, {'audio': 'a.wav'}),
    ('AA_TA2T', {}, {'audio_path': 'a.wav', **ANSWERED}, HEARD_DOG, {'audio': 'a.wav'}),
    ('AA_TA2T_LLF', {}, TA2T_LLF, HEARD_DOG, {'audio': SOUND}),
    ('AA_TV2T', {}, TV2T, SEEN_DOG, {'video': 'a.mp4'}),
    ('AA_TV2T', {}, {'video_path': 'a.mp4', **ANSWERED}, SEEN_DOG, {'video': 'a.mp4'}),
    ('Qwen2-VL', {}, QWEN, SEEN_DOG, {'video': 'a.mp4'}),
    ('Qwen2-VL', {}, QWEN_SFT, SEEN_DOG, {'video': 'a.mp4'}),
    ('AudioCaps', ASK, CAPS, [asked('audio', 'Say it.'), assistant('A dog barks.')], {'audio': 'a.wav'}),
    ('LibriSpeech', ASK, LIBRI, [asked('audio', 'Say it.'), assistant('HELLO WORLD')], {'audio': SOUND}),
    (
        'AudioSet',
        ASK,
        AUDIO_SET,
        [asked('audio', 'Say it.'), assistant('A dog barks.\nA car passes.')],
        {'audio': SOUND},
    ),
    (
        'AudioSet',
        ASK,
        {**AUDIO_SET, 'captions': 'Rain.'},
        [asked('audio', 'Say it.'), assistant('Rain.')],
        {'audio': SOUND},
    ),
    ('OpenAQA', {}, OPEN_AQA, HEARD_DOG, {'audio': 'a.flac'}),
]
PREFERENCE = [
    ('AA_TA2T', TA2T, HEARD_DOG, HEARD_CAT),
    ('AA_TA2T', {**TA2T, 'overall_response': '1'}, HEARD_CAT, HEARD_DOG),
    ('AA_TA2T_LLF', TA2T_LLF, HEARD_DOG, HEARD_CAT),
    ('AA_TV2T', TV2T, SEEN_DOG, SEEN_CAT),
    ('Qwen2-VL', QWEN, SEEN_DOG, SEEN_CAT),
]


@pytest.mark.parametrize(('name', 'options', 'row', 'expected', 'media'), SUPERVISED)
def test_supervised(name: str, options: dict, row: dict, expected: list, media: dict) -> None:
    conversation, meta = make_formatter(name, options).format_supervised_sample(row)
    assert conversation == expected
    assert {kind: meta[kind] for kind in media} == media


@pytest.mark.parametrize(('name', 'options', 'row', 'expected', 'media'), SUPERVISED)
def test_prompt_only(name: str, options: dict, row: dict, expected: list, media: dict) -> None:
    conversation, meta = make_formatter(name, options).format_prompt_only_sample(row)
    assert conversation == expected[:-1]
    assert {kind: meta[kind] for kind in media} == media
    # Questions that are asked without looking at the answer leave none out.
    assert meta.get('ground_truth', expected[-1]['content']) == expected[-1]['content']


@pytest.mark.parametrize(('name', 'options', 'row', 'expected', '_media'), SUPERVISED)
def test_unmatched_takes_the_last_answer_of_another_row(
    name: str, options: dict, row: dict, expected: list, _media: dict
) -> None:
    formatter = make_formatter(name, options)
    prompt_row = {key: 'Other?' if value == 'What?' else value for key, value in row.items()}
    conversation, meta = formatter.format_unmatched_supervised_sample(prompt_row, row)
    assert conversation == [*formatter.format_prompt_only_sample(prompt_row)[0], expected[-1]]
    assert 'ground_truth' not in meta


@pytest.mark.parametrize(('name', 'row', 'better', 'worse'), PREFERENCE)
def test_preference(name: str, row: dict, better: list, worse: list) -> None:
    formatter = make_formatter(name)
    got_better, got_worse, meta = formatter.format_preference_sample(row)
    assert (got_better, got_worse) == (better, worse)
    assert (meta['better_response'], meta['worse_response']) == (better[-1]['content'], worse[-1]['content'])
    assert not formatter.check_equal(row)
    assert formatter.check_equal({key: 'A dog.' if value == 'A cat.' else value for key, value in row.items()})


def test_every_hook_of_every_template_is_in_the_tables() -> None:
    names = {row[0] for row in SUPERVISED}
    assert names == set('AA_TA2T AA_TA2T_LLF AA_TV2T Qwen2-VL AudioCaps LibriSpeech AudioSet OpenAQA'.split())
    with_preference = {name for name in names if 'format_preference_sample' in make_formatter(name).hooks()}
    assert with_preference == {row[0] for row in PREFERENCE}


@pytest.mark.parametrize('name', ['AA_TA2T', 'AA_TV2T'])
def test_rows_without_a_usable_preference_are_refused(name: str) -> None:
    formatter = make_formatter(name)
    valid = [formatter.check_validation({**RANKED, 'overall_response': value}) for value in (1, '2', 0, 3, None)]
    assert valid == [True, True, False, False, False]


@pytest.mark.parametrize('name', ['AudioCaps', 'LibriSpeech', 'AudioSet'])
def test_each_row_is_always_asked_the_same_and_rows_differ(name: str) -> None:
    def request(number: int) -> str:
        answer = {'caption': f'{number}', 'text': f'{number}', 'captions': f'{number}'}
        row = {'audio': SOUND, 'audiocap_path': 'a.wav', **answer}
        return make_formatter(name).format_supervised_sample(row)[0][0]['content'][1]['text']

    requests = [request(number) for number in range(40)]
    assert requests == [request(number) for number in range(40)]
    assert set(requests) == set(make_formatter(name).requests)


def test_a_question_that_places_its_media_itself_keeps_its_order() -> None:
    conversation, _ = make_formatter('OpenAQA').format_prompt_only_sample({**OPEN_AQA, 'instruction': 'Hear <audio>?'})
    assert conversation == [{'role': 'user', 'content': 'Hear <audio>?'}]


@pytest.mark.parametrize(
    ('name', 'row', 'message'),
    [
        ('AA_TA2T', {**TA2T, 'audio_path': None}, "column 'audio_path' is null"),
        ('AA_TV2T', {'prompt': 'What?', 'response': 'x', 'video': 'a.mp4'}, "no column 'video_path'"),
        ('AudioSet', {**AUDIO_SET, 'captions': []}, 'empty list'),
        ('AudioSet', {**AUDIO_SET, 'captions': [None]}, "an entry of column 'captions' should be text"),
        ('LibriSpeech', {'audio': SOUND, 'texts': 'x'}, "Did you mean 'texts'"),
    ],
)
def test_bad_rows_say_what_is_wrong(name: str, row: dict, message: str) -> None:
    with pytest.raises(SampleError) as caught:
        make_formatter(name).format_supervised_sample(row)
    assert message in str(caught.value)
