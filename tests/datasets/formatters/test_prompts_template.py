"""Prompts: rows as TRL and verl write them for online training."""

from __future__ import annotations

import json
from typing import Any

import pytest

from align_anything.core.errors import SampleError
from align_anything.datasets.conversation import bind_media
from align_anything.datasets.template_registry import make_formatter

ASKED = [{'role': 'user', 'content': 'What is 7 + 5?'}]
BEGUN = {'role': 'assistant', 'content': 'Let me see:'}
CALL = {'id': 'c1', 'function': {'name': 'add', 'arguments': {'a': 7, 'b': 5}}}
NO_MEDIA: dict[str, Any] = {'image': [], 'video': [], 'audio': []}
VERL = {
    'data_source': 'sums',
    'prompt': ASKED,
    'reward_model': {'style': 'rule', 'ground_truth': '12'},
    'extra_info': {'index': 3},
}

GOOD = [
    ({}, {'prompt': ASKED, 'answer': '12', 'tests': ['x==12']}, {'ground_truth': '12'}),
    ({}, {'prompt': 'What is 7 + 5?', 'answer': 12}, {'ground_truth': 12}),
    ({}, {'prompt': ASKED}, {}),
    ({}, {'prompt': ASKED, 'answer': None}, {}),
    ({}, {'question': 'What is 7 + 5?', 'solution': '12'}, {'ground_truth': '12'}),
    ({}, VERL, {'ground_truth': '12'}),
    ({'answer': 'reward_model.ground_truth'}, VERL, {'ground_truth': '12'}),
    ({}, {'prompt': json.dumps(ASKED), 'answer': '12'}, {'ground_truth': '12'}),
    ({}, {'prompt': {'role': ['user'], 'content': ['What is 7 + 5?']}, 'answer': '12'}, {'ground_truth': '12'}),
    ({}, {**VERL, 'reward_model': json.dumps(VERL['reward_model'])}, {'ground_truth': '12'}),
    (
        {'answer': 'reward_model.ground_truth'},
        {**VERL, 'reward_model': json.dumps(VERL['reward_model'])},
        {'ground_truth': '12'},
    ),
    ({'answer': ''}, {'prompt': ASKED, 'answer': '12'}, {}),
    ({'prompt': 'q', 'answer': 'a'}, {'q': ASKED, 'a': '12', 'answer': 'x'}, {'ground_truth': '12'}),
    (
        {'keep_columns': True},
        {'prompt': ASKED, 'answer': '12', 'difficulty': 1, 'tests': ['x==12']},
        {'ground_truth': '12', 'answer': '12', 'difficulty': 1, 'tests': ['x==12']},
    ),
    (
        {'keep_columns': True, 'images': 'shot, mask'},
        {'prompt': ASKED, 'shot': 'a.png', 'mask': 'm.png', 'level': 2},
        {'level': 2, 'image': ['a.png', 'm.png']},
    ),
    ({'keep_columns': True}, VERL, {**{name: VERL[name] for name in VERL if name != 'prompt'}, 'ground_truth': '12'}),
    (
        {'keep_columns': True, 'tools': ''},
        {'prompt': ASKED, 'tools': [{'type': 'function', 'function': {'name': 'add'}}], 'level': 2},
        {'level': 2},
    ),
    (
        {'keep_columns': True, 'answer': ''},
        {'prompt': ASKED, 'ground_truth': '12', 'image': 'a.png'},
        {'ground_truth': '12', 'image': 'a.png'},
    ),
]


@pytest.mark.parametrize(('options', 'row', 'meta'), GOOD)
def test_rows_become_prompts(options: dict[str, Any], row: dict[str, Any], meta: dict[str, Any]) -> None:
    turns, found = make_formatter('Prompts', options).format_prompt_only_sample(row)
    assert turns == ASKED and found == {**NO_MEDIA, **meta}


def test_a_response_may_go_on_from_the_last_turn() -> None:
    row = {'prompt': [*ASKED, BEGUN], 'answer': '12'}
    with pytest.raises(SampleError, match='continue_final_message: True'):
        make_formatter('Prompts').format_prompt_only_sample(row)
    turns, meta = make_formatter('Prompts', {'continue_final_message': True}).format_prompt_only_sample(row)
    assert turns == [*ASKED, {**BEGUN, 'prefix': True}] and meta['ground_truth'] == '12'
    marked = {'prompt': [*ASKED, {**BEGUN, 'prefix': True}]}
    assert make_formatter('Prompts').format_prompt_only_sample(marked)[0] == turns
    *_, last = bind_media(turns, meta, needs_reply=False)
    assert last == {'role': 'assistant', 'content': [{'type': 'text', 'text': 'Let me see:'}], 'prefix': True}
    only = make_formatter('Prompts', {'continue_final_message': True}).format_prompt_only_sample({'prompt': ASKED})
    assert only[0] == ASKED, 'most rows begin no answer'


@pytest.mark.parametrize(
    ('turns', 'needs_reply'),
    [
        ([*ASKED, BEGUN], False),  # without the mark
        ([*ASKED, {**BEGUN, 'prefix': True}], True),  # nothing is left to learn
        ([*ASKED, {**BEGUN, 'prefix': True}, *ASKED], False),
        ([{**ASKED[0], 'prefix': True}], False),
        ([*ASKED, {**BEGUN, 'prefix': True, 'reasoning_content': 'I add.'}], False),
        ([*ASKED, {**BEGUN, 'prefix': True, 'tool_calls': [CALL]}], False),
    ],
)
def test_nothing_else_goes_on(turns: list[dict[str, Any]], needs_reply: bool) -> None:
    with pytest.raises(SampleError, match='prefix|goes on|go on from'):
        bind_media(turns, {}, needs_reply=needs_reply)


@pytest.mark.parametrize(
    ('options', 'row', 'message'),
    [
        ({'answer': 'reward_model.truth'}, VERL, "no column 'reward_model.truth'"),
        ({'answer': 'gold'}, {'prompt': ASKED}, "no column 'gold'"),
        ({}, {'messages': None, 'x': 1}, "'messages' is null"),
        ({}, {'prompt': True}, "column 'prompt' should be text but is bool"),
    ],
)
def test_bad_rows_are_named(options: dict[str, Any], row: dict[str, Any], message: str) -> None:
    with pytest.raises(SampleError, match=message):
        make_formatter('Prompts', options).format_prompt_only_sample(row)
