"""Messages, ShareGPT and Instruction: any column names, with errors that name the right ones."""

from __future__ import annotations

from typing import Any

import pytest

from align_anything.core.errors import DataError, SampleError
from align_anything.datasets.formatters.sharegpt import ShareGPT
from align_anything.datasets.template_registry import make_formatter

NO_MEDIA = {'image': [], 'video': [], 'audio': []}
CHAT = [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello'}]
SYSTEM = {'role': 'system', 'content': 'Be kind.'}
PARTS = [{'type': 'image'}, {'type': 'text', 'text': 'Hi'}]
TALK = [{'from': 'human', 'value': 'Hi'}, {'from': 'gpt', 'value': 'Hello'}]
FLIPPED = [{'speaker': 'Alice', 'says': 'Hi'}, {'speaker': 'Bob', 'says': 'Hello'}]
FLIPPED_OPTIONS = {'role_key': 'speaker', 'content_key': 'says', 'roles': {'Alice': 'user', 'Bob': 'assistant'}}

GOOD = [
    ('Messages', {}, {'messages': CHAT}, CHAT, NO_MEDIA),
    ('Messages', {}, {'messages': CHAT, 'images': None, 'tools': '[]', 'system': None}, CHAT, NO_MEDIA),
    ('Messages', {}, {'messages': CHAT, 'image': 'a.png'}, CHAT, {**NO_MEDIA, 'image': 'a.png'}),
    (
        'Messages',
        {'messages': 'chat', 'images': 'pics'},
        {'chat': CHAT, 'pics': ['a']},
        CHAT,
        {**NO_MEDIA, 'image': ['a']},
    ),
    ('Messages', {}, {'messages': CHAT, 'system': 'Be kind.'}, [SYSTEM, *CHAT], NO_MEDIA),
    ('Messages', {'system': 'sys'}, {'messages': CHAT, 'sys': 'Be kind.'}, [SYSTEM, *CHAT], NO_MEDIA),
    ('Messages', {'system_prompt': 'Be kind.'}, {'messages': CHAT}, [SYSTEM, *CHAT], NO_MEDIA),
    ('Messages', {'system_prompt': 'No.'}, {'messages': [SYSTEM, *CHAT]}, [SYSTEM, *CHAT], NO_MEDIA),
    ('Messages', {'system': ''}, {'messages': [SYSTEM, *CHAT], 'system': 'x'}, [SYSTEM, *CHAT], NO_MEDIA),
    ('Messages', {'videos': '', 'audios': ''}, {'messages': CHAT}, CHAT, {'image': []}),
    (
        'Messages',
        {},
        {'messages': [{'role': 'user', 'content': PARTS}]},
        [{'role': 'user', 'content': PARTS}],
        NO_MEDIA,
    ),
    ('ShareGPT', {}, {'conversations': TALK}, CHAT, NO_MEDIA),
    ('ShareGPT', FLIPPED_OPTIONS, {'conversation': FLIPPED}, CHAT, NO_MEDIA),
    ('ShareGPT', {}, {'conversations': [{'from': 'system', 'value': 'Be kind.'}, *TALK]}, [SYSTEM, *CHAT], NO_MEDIA),
    (
        'ShareGPT',
        {'system': 'system_prompt'},
        {'system_prompt': 'Be kind.', 'video': 'v.mp4', 'conversations': TALK},
        [SYSTEM, *CHAT],
        {**NO_MEDIA, 'video': 'v.mp4'},
    ),
    (
        'ShareGPT',
        {'images': 'embed'},
        {'conversations': TALK, 'embed': [0.5, 1]},
        CHAT,
        {**NO_MEDIA, 'image': [0.5, 1]},
    ),
    ('Instruction', {}, {'instruction': 'Hi', 'input': '', 'output': 'Hello'}, CHAT, NO_MEDIA),
    ('Instruction', {}, {'prompt': 'Hi', 'response': 'Hello', 'image': b'x'}, CHAT, {**NO_MEDIA, 'image': b'x'}),
    ('Instruction', {'prompt': 'q', 'response': 'a'}, {'q': 'Hi', 'a': 'Hello', 'prompt': 'x'}, CHAT, NO_MEDIA),
    (
        'Instruction',
        {'input': 'context'},
        {'question': 'Sum?', 'context': '1 2', 'answer': 3, 'history': [['Hi', 'Hello']], 'system': 'Be kind.'},
        [SYSTEM, *CHAT, {'role': 'user', 'content': 'Sum?\n1 2'}, {'role': 'assistant', 'content': '3'}],
        NO_MEDIA,
    ),
]


@pytest.mark.parametrize(('name', 'options', 'row', 'expected', 'media'), GOOD)
def test_supervised(name: str, options: dict, row: dict, expected: list, media: dict) -> None:
    assert make_formatter(name, options).format_supervised_sample(row) == (expected, media)


BAD = [
    ('Messages', {'messages': 'mesages'}, {'messages': CHAT}, "no column 'mesages'. Did you mean 'messages'?"),
    (
        'Messages',
        {'images': 'pictures'},
        {'messages': CHAT, 'picture': 1},
        "no column 'pictures'. Did you mean 'picture'?",
    ),
    ('Messages', {}, {'msgs': CHAT}, "Map it with the template option 'messages'"),
    ('Messages', {}, {'messages': None}, "column 'messages' is null"),
    ('Messages', {}, {'messages': 'Hi'}, 'should be a list but is str'),
    ('Messages', {}, {'messages': TALK}, 'are for the template ShareGPT'),
    ('Messages', {}, {'messages': ['Hi']}, 'turn 0 is no'),
    ('Messages', {}, {'messages': [{'role': 'user', 'content': None}]}, 'turn 0 (user) has null content'),
    ('Messages', {}, {'messages': [SYSTEM, *CHAT], 'system': 'x'}, 'a system turn and also column'),
    ('Messages', {}, {'messages': CHAT, 'image': 'a', 'images': ['b']}, "columns 'images' and 'image'"),
    ('ShareGPT', {}, {'conversations': [{'from': 'humen', 'value': 'Hi'}]}, "Did you mean 'human'?"),
    ('ShareGPT', {}, {'conversations': [{'role': 'user', 'content': 'Hi'}]}, "no column 'from'"),
    ('ShareGPT', {}, {'conversations': ['Hi']}, 'turn 0 should be a record'),
    ('ShareGPT', {'system': 'sys'}, {'conversations': TALK}, "no column 'sys'"),
    ('Instruction', {}, {'task': 'Hi', 'output': 'x'}, "no column 'instruction' or 'prompt' or 'question'"),
    ('Instruction', {}, {'prompt': 'Hi'}, "template option 'response'"),
    ('Instruction', {'history': 'past'}, {'prompt': 'Hi', 'output': 'x'}, "no column 'past'"),
    ('Instruction', {}, {'prompt': 'Hi', 'output': 'x', 'history': [['a']]}, 'should be [question, answer]'),
    ('Instruction', {}, {'prompt': 'Hi', 'output': 'x', 'system': ['y']}, "column 'system' should be text"),
]


@pytest.mark.parametrize(('name', 'options', 'row', 'message'), BAD)
def test_bad_rows_say_what_is_wrong(name: str, options: dict, row: dict, message: str) -> None:
    with pytest.raises(SampleError) as caught:
        make_formatter(name, options).format_supervised_sample(row)
    assert message in str(caught.value)


def test_prompts() -> None:
    talk = [*CHAT, {'role': 'user', 'content': 'More?'}]
    assert make_formatter('Messages').format_prompt_only_sample({'messages': talk}) == (talk, NO_MEDIA)
    ended = make_formatter('ShareGPT').format_prompt_only_sample({'conversations': TALK})
    assert ended == (CHAT[:1], {**NO_MEDIA, 'ground_truth': 'Hello'})
    instruction = make_formatter('Instruction')
    assert instruction.format_prompt_only_sample({'prompt': 'Hi'}) == (CHAT[:1], NO_MEDIA)
    answered = instruction.format_prompt_only_sample({'prompt': 'Hi', 'answer': 4})
    assert answered == (CHAT[:1], {**NO_MEDIA, 'ground_truth': '4'})


def test_unmatched() -> None:
    rows = {'prompt': 'Hi', 'output': 'x'}, {'prompt': 'Other', 'output': 'Hello'}
    assert make_formatter('Instruction').format_unmatched_supervised_sample(*rows) == (CHAT, NO_MEDIA)


def test_a_class_derived_from_a_mapped_template_maps_by_its_attributes() -> None:
    class Dialogue(ShareGPT):
        conversations: str = 'dialogue'

    assert Dialogue().format_supervised_sample({'dialogue': TALK, 'conversations': []})[0] == CHAT


@pytest.mark.parametrize(
    ('name', 'options', 'message'),
    [
        ('Messages', {'mesages': 'x'}, "no option 'mesages'. Did you mean 'messages'?"),
        ('Messages', {'messages': 3}, 'is 3, but should be of the kind'),
        ('ShareGPT', {'roles': ['user']}, 'should be of the kind of its default {}'),
        ('TLDR', {'requests': 'one text'}, "option 'requests'"),
        ('Alpaca', {'system_prompt': None}, "option 'system_prompt'"),
    ],
)
def test_bad_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        make_formatter(name, options)
    assert message in str(caught.value)
