"""Captions, and the texts that keep a model talking beside them."""

from __future__ import annotations

from typing import Any

import pytest

from align_anything.core.errors import SampleError
from align_anything.datasets.conversation import bind_media
from align_anything.datasets.template_registry import make_formatter

OMEGA = {'requests': ['Video:\n<{kind}>\nCaption the previous {kind}.'], 'videos': 'video_embed'}
NO_MEDIA = {'image': [], 'video': [], 'audio': []}
HEADER = '<|start_header_id|>{}<|end_header_id|>\n\n'
TALK = ''.join(
    HEADER.format(role) + said
    for role, said in [('system', 'Be kind.<|eot_id|>'), ('user', 'Hi<|eot_id|>'), ('assistant', '')]
)


def test_a_caption_is_asked_for_where_the_request_says() -> None:
    formatter = make_formatter('Captioning', OMEGA)
    conversation, meta = formatter.format_supervised_sample({'video_embed': [0.5, 1.0], 'description': 'A dog runs.'})
    assert meta == {**NO_MEDIA, 'video': [0.5, 1.0]}
    video, words = bind_media(conversation, meta)[0]['content'][1], bind_media(conversation, meta)[0]['content'][0]
    assert video['video'].source == {'embedding': [0.5, 1.0]}
    assert words['text'] == 'Video:\n'
    assert conversation[1] == {'role': 'assistant', 'content': 'A dog runs.'}


@pytest.mark.parametrize('kind', ['image', 'video', 'audio'])
def test_each_row_is_always_asked_in_the_same_way_and_media_stand_in_front(kind: str) -> None:
    formatter = make_formatter('Captioning', {'system_prompt': 'Be short.'})
    rows = [{kind: 'file', 'caption': f'Number {number}.'} for number in range(40)]
    first, again = ([formatter.format_supervised_sample(row)[0] for row in rows] for _ in range(2))
    assert first == again
    assert {turns[1]['content'][1]['text'] for turns in first} == {
        request.replace('{kind}', kind) for request in formatter.requests
    }
    assert all(turns[1]['content'][0] == {'type': kind} for turns in first)
    assert first[0][0] == {'role': 'system', 'content': 'Be short.'}


@pytest.mark.parametrize(
    ('row', 'words'),
    [
        ({'caption': 'A dog.'}, 'has 0 media'),
        ({'caption': 'A dog.', 'image': None}, 'has 0 media'),
        ({'caption': 'A dog.', 'image': {'bytes': None, 'path': None}}, 'has 0 media'),
        ({'caption': 'A dog.', 'images': ['a.png', 'b.png']}, 'has 2 media'),
        ({'caption': 'A dog.', 'image': 'a.png', 'audio': 'a.wav'}, 'has 2 media'),
        ({'image': 'a.png', 'words': 'A dog.'}, "'caption' or 'description' or 'text'"),
    ],
)
def test_a_caption_is_about_one_medium(row: dict[str, Any], words: str) -> None:
    with pytest.raises(SampleError, match=words):
        make_formatter('Captioning').format_supervised_sample(row)


def test_turns_with_headers_are_turns_again() -> None:
    formatter = make_formatter('Bagel_Llama3', {'system_prompt': 'Not this one.'})
    row = {'input': f'<|begin_of_text|>{TALK}', 'output': 'Hello\n\nyou<|eot_id|>', 'source': 'airoboros'}
    conversation, meta = formatter.format_supervised_sample(row)
    said = [(turn['role'], turn['content']) for turn in conversation]
    assert said == [('system', 'Be kind.'), ('user', 'Hi'), ('assistant', 'Hello\n\nyou')] and meta == {}
    prompt, meta = formatter.format_prompt_only_sample(row)
    assert prompt == conversation[:-1] and meta == {'ground_truth': 'Hello\n\nyou'}
    without = {'input': HEADER.format('user') + 'Hi<|eot_id|>' + HEADER.format('assistant'), 'output': 'Hello'}
    conversation, _ = formatter.format_supervised_sample(without)
    assert [turn['content'] for turn in conversation] == ['Not this one.', 'Hi', 'Hello']


def test_plain_texts_are_filtered_and_others_that_are_no_turns_refused() -> None:
    formatter = make_formatter('Bagel_Llama3')
    assert not formatter.check_validation({'source': 'cinematika_scenes_plain_text'})
    assert formatter.check_validation({'source': 'airoboros'}) and formatter.check_validation({})
    with pytest.raises(SampleError, match="without a header of Llama 3.*'Once upon"):
        formatter.format_supervised_sample({'input': 'Once upon a time', 'output': TALK})
