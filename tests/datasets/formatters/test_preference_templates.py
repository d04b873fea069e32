"""Preference, Rated, Unpaired and PKUSafeRLHF_Cost: each form of row gives exactly this, or says why not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from align_anything.core.errors import SampleError
from align_anything.datasets.template_registry import make_formatter

NO_MEDIA = {'image': [], 'video': [], 'audio': []}
SYSTEM = {'role': 'system', 'content': 'Be kind.'}
HI, MORE = ({'role': 'user', 'content': text} for text in ('Hi', 'More?'))
HELLO, NO, YES = ({'role': 'assistant', 'content': text} for text in ('Hello', 'No', 'Yes'))
SEEN = {'role': 'user', 'content': [{'type': 'image'}, {'type': 'text', 'text': 'Hi'}]}
ANSWERS = {'chosen': 'Hello', 'rejected': 'No'}
SAFETY = {'safer_response_id': 1, 'is_response_0_safe': False, 'is_response_1_safe': True}
COST = {'prompt': 'Hi', 'response_0': 'Hello', 'response_1': 'No', **SAFETY}

PAIRS = [
    # Text, messages, a single message, and whole conversations.
    ('Preference', {}, {'prompt': 'Hi', **ANSWERS}, [HI], {}),
    ('Preference', {}, {'question': 'Hi', 'better': 'Hello', 'worse': 'No'}, [HI], {}),
    ('Preference', {}, {'prompt': [SYSTEM, HI], 'chosen': [HELLO], 'rejected': NO}, [SYSTEM, HI], {}),
    ('Preference', {}, {'messages': [HI, YES, MORE], **ANSWERS}, [HI, YES, MORE], {}),
    ('Preference', {}, {'chosen': [HI, HELLO], 'rejected': [HI, NO]}, [HI], {}),
    ('Preference', {}, {'prompt': None, 'chosen': [HI, HELLO], 'rejected': [HI, NO]}, [HI], {}),
    ('Preference', {}, {'chosen': [HI, HELLO], 'rejected': [HI, NO], 'system': 'Be kind.'}, [SYSTEM, HI], {}),
    # A system prompt, media, margins, columns of other names.
    ('Preference', {'system_prompt': 'Be kind.'}, {'prompt': 'Hi', **ANSWERS}, [SYSTEM, HI], {}),
    ('Preference', {}, {'prompt': 'Hi', **ANSWERS, 'system': 'Be kind.'}, [SYSTEM, HI], {}),
    ('Preference', {}, {'prompt': [SEEN], **ANSWERS, 'images': ['a.png']}, [SEEN], {'image': ['a.png']}),
    ('Preference', {'audios': 'sound'}, {'prompt': 'Hi', **ANSWERS, 'sound': 'a.wav'}, [HI], {'audio': 'a.wav'}),
    ('Preference', {}, {'prompt': 'Hi', **ANSWERS, 'margin': 2}, [HI], {'margin': 2.0}),
    ('Preference', {}, {'prompt': 'Hi', **ANSWERS, 'margin': None}, [HI], {}),
    ('Preference', {'margin': 'by'}, {'prompt': 'Hi', **ANSWERS, 'by': 0.5, 'margin': 'x'}, [HI], {'margin': 0.5}),
    (
        'Preference',
        {'prompt': 'q', 'chosen': 'good', 'rejected': 'bad'},
        {'q': 'Hi', 'good': 'Hello', 'bad': 'No', 'prompt': 'x'},
        [HI],
        {},
    ),
    # The best and the worst of several, wherever they stand.
    ('Rated', {}, {'prompt': 'Hi', 'responses': ['Yes', 'No', 'Hello'], 'ratings': [3, 1, 4.5]}, [HI], {}),
    (
        'Rated',
        {},
        {'prompt': 'Hi', 'completions': ['No', 'Hello'], 'scores': [-1, 0], 'image': 'a'},
        [HI],
        {'image': 'a'},
    ),
    ('Rated', {'responses': 'a', 'ratings': 'r'}, {'prompt': [HI], 'a': [[HELLO], NO], 'r': [2, 1]}, [HI], {}),
]


@pytest.mark.parametrize(('name', 'options', 'row', 'prompt', 'meta'), PAIRS)
def test_pairs(name: str, options: dict, row: dict[str, Any], prompt: list, meta: dict) -> None:
    formatter = make_formatter(name, options)
    expected = {**NO_MEDIA, **meta}
    assert formatter.format_preference_sample(row) == ([*prompt, HELLO], [*prompt, NO], expected)
    assert formatter.format_supervised_sample(row) == ([*prompt, HELLO], expected)
    assert formatter.check_validation(row) and not formatter.check_equal(row)
    asked, _ = formatter.format_prompt_only_sample(row)
    assert asked == prompt


GOOD_OR_BAD = [
    ({}, {'prompt': 'Hi', 'completion': 'Hello', 'label': True}, True),
    ({}, {'question': 'Hi', 'answer': 'Hello', 'label': 0}, 0),
    ({}, {'messages': [HI], 'response': [HELLO], 'label': False}, False),
    ({}, {'completion': [HI, HELLO], 'label': True}, True),
    ({'label': 'good', 'response': 'text'}, {'prompt': 'Hi', 'text': 'Hello', 'good': True, 'label': 'x'}, True),
]


@pytest.mark.parametrize(('options', 'row', 'label'), GOOD_OR_BAD)
def test_unpaired(options: dict, row: dict[str, Any], label: Any) -> None:
    conversation, meta = make_formatter('Unpaired', options).format_supervised_sample(row)
    assert (conversation, meta) == ([HI, HELLO], {**NO_MEDIA, 'label': label})


def test_a_call_as_json_text_is_a_call_and_no_text() -> None:
    called = [{'role': 'assistant', 'tool_calls': [{'function': {'name': 'add', 'arguments': {'a': 1}}}]}]
    row = {'prompt': 'Add.', 'chosen': json.dumps(called), 'rejected': 'No.'}
    better, _, _ = make_formatter('Preference', {}).format_preference_sample(row)
    assert better[1]['tool_calls'] == called[0]['tool_calls'] and not better[1]['content']


def test_the_answer_of_another_row() -> None:
    row = {'prompt': 'Hi', 'completion': 'Hello', 'label': True, 'image': 'a.png'}
    other = {'prompt': 'More?', 'completion': 'No', 'label': False}
    conversation, meta = make_formatter('Unpaired').format_unmatched_supervised_sample(row, other)
    assert conversation == [HI, NO] and meta['image'] == 'a.png'


def test_the_more_harmful_answer_comes_first_and_the_safer_one_is_learned() -> None:
    formatter = make_formatter('PKUSafeRLHF_Cost')
    harmful, harmless, meta = formatter.format_preference_sample(COST)
    assert (harmful, harmless) == ([HI, HELLO], [HI, NO])
    assert (meta['is_better_safe'], meta['is_worse_safe']) == (False, True)
    assert formatter.format_supervised_sample(COST)[0] == [HI, NO]
    assert not formatter.check_validation({**COST, 'safer_response_id': -1})


BAD = [
    ('Preference', {'prompt': 'Hi', 'rejected': 'No'}, "no column 'chosen' or 'better'"),
    ('Preference', {'prompt': 'Hi', 'chosen': 'Hello', 'rejectd': 'No'}, "Did you mean 'rejectd'?"),
    ('Preference', {'prompt': 'Hi', 'chosen': 'Hello', 'rejected': None}, "column 'rejected' is null"),
    ('Preference', {'promt': 'Hi', **ANSWERS}, "column 'chosen' is no conversation with one"),
    ('Preference', {'prompt': 'Hi', **ANSWERS, 'margin': 'wide'}, "column 'margin' should be a number but is 'wide'"),
    ('Preference', {'prompt': 'Hi', 'chosen': [{'text': 'Hello'}], 'rejected': 'No'}, 'turn 0'),
    ('Preference', {'prompt': 'Hi', 'chosen': True, 'rejected': 'No'}, "column 'chosen' should be text but is bool"),
    ('Rated', {'prompt': 'Hi', 'responses': ['No', 'Hello'], 'ratings': [1]}, '2 answers and column'),
    ('Rated', {'prompt': 'Hi', 'responses': ['No'], 'ratings': [1]}, 'two at least'),
    ('Rated', {'prompt': 'Hi', 'responses': ['No', 'Hello'], 'ratings': ['1', 'high']}, 'should be a number'),
    ('Rated', {'prompt': 'Hi', 'responses': ['No', 'Hello'], 'ratings': [1, float('nan')]}, 'should be a number'),
    ('Rated', {'prompt': 'Hi', 'responses': 'No', 'ratings': [1, 2]}, 'should be a list'),
    ('PKUSafeRLHF_Cost', {**COST, 'is_response_0_safe': None}, "column 'is_response_0_safe' is null"),
    ('PKUSafeRLHF_Cost', {**COST, 'safer_response_id': 2}, 'should be one of [0, 1]'),
]


@pytest.mark.parametrize(('name', 'row', 'message'), BAD)
def test_bad_rows_say_what_is_wrong(name: str, row: dict[str, Any], message: str) -> None:
    with pytest.raises(SampleError) as caught:
        make_formatter(name).format_preference_sample(row)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ('row', 'message'), [({'prompt': 'Hi', 'completion': 'x'}, "option 'label'"), ({'label': 1}, "option 'response'")]
)
def test_bad_single_answers_say_what_is_wrong(row: dict[str, Any], message: str) -> None:
    with pytest.raises(SampleError) as caught:
        make_formatter('Unpaired').format_supervised_sample(row)
    assert message in str(caught.value)


def test_equal_ratings_prefer_nothing() -> None:
    rated = make_formatter('Rated')
    assert not rated.check_validation({'prompt': 'Hi', 'responses': ['No', 'Hello'], 'ratings': [1, 1]})


def test_conversations_that_part_early_are_not_equal_when_they_end_alike() -> None:
    row = {'chosen': [HI, HELLO, MORE, YES], 'rejected': [HI, NO, MORE, YES]}
    preference = make_formatter('Preference')
    assert not preference.check_equal(row)
    assert preference.check_equal({**row, 'rejected': row['chosen']})
