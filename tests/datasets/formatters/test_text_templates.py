"""Each hook of each text template, on a row in the dataset's own columns, gives exactly this conversation."""

from __future__ import annotations

from typing import Any

import pytest

from align_anything.core.errors import DataError, SampleError
from align_anything.datasets.template_registry import make_formatter


def user(text: str) -> dict[str, Any]:
    return {'role': 'user', 'content': text}


def assistant(text: str) -> dict[str, Any]:
    return {'role': 'assistant', 'content': text}


def system(text: str) -> dict[str, Any]:
    return {'role': 'system', 'content': text}


ALPACA = {'instruction': 'Add.', 'input': '1, 2', 'output': '3'}
PKU = {'prompt': 'How?', 'response_0': 'So.', 'response_1': 'Not at all.', 'better_response_id': 1}
ALIGNER = {'question': 'Q', 'answer': 'A', 'correction': 'C'}
THOUGHTS = {
    'prompt': '2+2?',
    'thoughts': [{'title': 'Count', 'content': 'One by one.'}, {'content': 'Done.'}],
    'answer': '4',
}
O1_OPTIONS = {'special_tokens': ['<think>', '<step>', '</think>']}
O1_REPLY = '<think>**Count**\nOne by one.\n<step>\nDone.\n<step>\n</think>4'
MATH = {'question': '1+1?', 'answer': '<think> easy </think><answer> $2$ </answer>'}
MATH_SYSTEM = make_formatter('Math-Zero-RL').system_prompt
POST = {'content': 'A long post.', 'summary': 'Short.'}
POST_PROMPT = make_formatter('TLDR').format_supervised_sample(POST)[0][0]['content']
GSM = {'question': 'How many?', 'answer': 'Two. #### 2'}

SUPERVISED = [
    ('Alpaca', {}, ALPACA, [user('Add. 1, 2'), assistant('3')]),
    ('Alpaca', {}, {**ALPACA, 'input': ''}, [user('Add.'), assistant('3')]),
    ('Alpaca', {}, {'instruction': 'Add.', 'output': 3}, [user('Add.'), assistant('3')]),
    ('Alpaca', {'system_prompt': 'Be terse.'}, ALPACA, [system('Be terse.'), user('Add. 1, 2'), assistant('3')]),
    ('PKUSafeRLHF', {}, PKU, [user('How?'), assistant('Not at all.')]),
    ('Aligner', {}, ALIGNER, [user('##QUESTION: Q ##ANSWER: A'), assistant('##CORRECTION: C')]),
    ('O1_T2T', O1_OPTIONS, THOUGHTS, [user('2+2?'), assistant(O1_REPLY)]),
    ('AA_T2T', {}, {'prompt': 'Hi', 'response': 'Hello'}, [user('Hi'), assistant('Hello')]),
    ('Math-Zero-RL', {}, MATH, [system(MATH_SYSTEM), user('1+1?'), assistant(MATH['answer'])]),
    ('Math-Zero-RL', {'system_prompt': ''}, {'prompt': 'P', 'answer': '2'}, [user('P'), assistant('2')]),
    ('TLDR', {}, POST, [user(POST_PROMPT), assistant('Short.')]),
    ('TLDR', {'requests': ['Shorten: ']}, POST, [user('Shorten: A long post.'), assistant('Short.')]),
    ('GSM8K', {}, GSM, [user('How many?'), assistant('Two. #### 2')]),
]

PROMPT_ONLY = [
    ('Alpaca', {}, ALPACA, [user('Add. 1, 2')], {'ground_truth': '3'}),
    ('PKUSafeRLHF', {}, {'prompt': 'How?'}, [user('How?')], {}),
    ('Aligner', {}, ALIGNER, [user('##QUESTION: Q ##ANSWER: A')], {'ground_truth': '##CORRECTION: C'}),
    ('O1_T2T', O1_OPTIONS, THOUGHTS, [user('2+2?')], {'ground_truth': O1_REPLY}),
    ('AA_T2T', {}, {'prompt': 'Hi', 'response': 'Hello'}, [user('Hi')], {'ground_truth': 'Hello'}),
    ('Math-Zero-RL', {}, MATH, [system(MATH_SYSTEM), user('1+1?')], {'ground_truth': MATH['answer']}),
    ('Math-Zero-RL', {}, {'prompt': '1+1?'}, [system(MATH_SYSTEM), user('1+1?')], {}),
    ('TLDR', {}, POST, [user(POST_PROMPT)], {'ground_truth': 'Short.'}),
    ('GSM8K', {}, GSM, [user('How many?')], {'ground_truth': 'Two. #### 2'}),
]

UNMATCHED = [
    ('Alpaca', {}, ALPACA, {**ALPACA, 'output': '7'}, [user('Add. 1, 2'), assistant('7')]),
    ('PKUSafeRLHF', {}, {'prompt': 'P'}, {'response_1': 'R'}, [user('P'), assistant('R')]),
    (
        'Aligner',
        {},
        ALIGNER,
        {**ALIGNER, 'correction': 'D'},
        [user('##QUESTION: Q ##ANSWER: A'), assistant('##CORRECTION: D')],
    ),
    ('O1_T2T', O1_OPTIONS, {**THOUGHTS, 'prompt': '3+3?'}, THOUGHTS, [user('3+3?'), assistant(O1_REPLY)]),
    ('AA_T2T', {}, {'prompt': 'a', 'response': 'b'}, {'prompt': 'c', 'response': 'd'}, [user('a'), assistant('d')]),
    ('Math-Zero-RL', {}, MATH, {**MATH, 'answer': '3'}, [system(MATH_SYSTEM), user('1+1?'), assistant('3')]),
    ('TLDR', {}, POST, {**POST, 'summary': 'Other.'}, [user(POST_PROMPT), assistant('Other.')]),
    ('GSM8K', {}, GSM, {**GSM, 'answer': '9'}, [user('How many?'), assistant('9')]),
]


@pytest.mark.parametrize(('name', 'options', 'row', 'expected'), SUPERVISED)
def test_supervised(name: str, options: dict, row: dict, expected: list) -> None:
    assert make_formatter(name, options).format_supervised_sample(row)[0] == expected


@pytest.mark.parametrize(('name', 'options', 'row', 'expected', 'meta'), PROMPT_ONLY)
def test_prompt_only(name: str, options: dict, row: dict, expected: list, meta: dict) -> None:
    assert make_formatter(name, options).format_prompt_only_sample(row) == (expected, meta)


@pytest.mark.parametrize(('name', 'options', 'prompt_row', 'response_row', 'expected'), UNMATCHED)
def test_unmatched(name: str, options: dict, prompt_row: dict, response_row: dict, expected: list) -> None:
    formatter = make_formatter(name, options)
    assert formatter.format_unmatched_supervised_sample(prompt_row, response_row) == (expected, {})


def test_preference_of_pku_safe_rlhf() -> None:
    formatter = make_formatter('PKUSafeRLHF')
    better, worse, meta = formatter.format_preference_sample(PKU)
    assert better == [user('How?'), assistant('Not at all.')]
    assert worse == [user('How?'), assistant('So.')]
    assert meta == {'better_response': 'Not at all.', 'worse_response': 'So.'}
    assert formatter.format_preference_sample({**PKU, 'better_response_id': 0})[0][1] == assistant('So.')
    assert not formatter.check_equal(PKU)
    assert formatter.check_equal({**PKU, 'response_0': 'Not at all.'})
    assert [formatter.check_validation({**PKU, 'better_response_id': value}) for value in (0, '1', 2, None)] == [
        True,
        True,
        False,
        False,
    ]


def test_every_hook_of_every_text_template_is_in_the_tables() -> None:
    covered = {(row[0], 'format_supervised_sample') for row in SUPERVISED}
    covered |= {(row[0], 'format_prompt_only_sample') for row in PROMPT_ONLY}
    covered |= {(row[0], 'format_unmatched_supervised_sample') for row in UNMATCHED}
    covered |= {('PKUSafeRLHF', 'format_preference_sample'), ('PKUSafeRLHF', 'check_equal')}
    names = {'Alpaca', 'PKUSafeRLHF', 'Aligner', 'O1_T2T', 'AA_T2T', 'Math-Zero-RL', 'TLDR', 'GSM8K'}
    options = {'O1_T2T': O1_OPTIONS}
    assert covered == {(name, hook) for name in names for hook in make_formatter(name, options.get(name)).hooks()}


def test_tldr_asks_in_several_ways_and_always_the_same_for_a_row() -> None:
    formatter = make_formatter('TLDR')
    posts = [{'content': f'post {number}', 'summary': 's'} for number in range(40)]
    asked = [formatter.format_supervised_sample(post)[0][0]['content'] for post in posts]
    assert asked == [make_formatter('TLDR').format_supervised_sample(post)[0][0]['content'] for post in posts]
    # 40 posts over 8 ways to ask: more than half of the ways appear.
    assert len({text.removesuffix(f'post {number}') for number, text in enumerate(asked)}) > 4


@pytest.mark.parametrize('tokens', [[], ['<a>', '<b>'], ['<a>', '<b>', '<c>', '<d>']])
def test_o1_needs_three_marks(tokens: list[str]) -> None:
    with pytest.raises(DataError, match='list of three marks'):
        make_formatter('O1_T2T', {'special_tokens': tokens})


BAD_ROWS = [
    ('Alpaca', {'instrction': 'a', 'output': 'b'}, "no column 'instruction'. Did you mean 'instrction'"),
    ('Alpaca', {'instruction': None, 'output': 'b'}, "column 'instruction' is null"),
    ('GSM8K', {'question': ['a'], 'answer': 'b'}, 'should be text but is list'),
    ('GSM8K', {'question': float('nan'), 'answer': 'b'}, 'should be text but is float'),
    ('GSM8K', {'question': True, 'answer': 'b'}, 'should be text but is bool'),
    ('GSM8K', {}, 'Its columns: none'),
    ('PKUSafeRLHF', {**PKU, 'better_response_id': 2}, 'should be one of'),
    ('Math-Zero-RL', {'answer': 'a'}, "no column 'prompt' or 'question'"),
]


@pytest.mark.parametrize(('name', 'row', 'message'), BAD_ROWS)
def test_bad_rows_say_what_is_wrong(name: str, row: dict, message: str) -> None:
    with pytest.raises(SampleError) as caught:
        make_formatter(name).format_supervised_sample(row)
    assert message in str(caught.value)


@pytest.mark.parametrize('thoughts', ['text', [1], [{'title': 'no content'}]])
def test_bad_thoughts(thoughts: Any) -> None:
    with pytest.raises(SampleError, match='thoughts|content'):
        make_formatter('O1_T2T', O1_OPTIONS).format_supervised_sample({**THOUGHTS, 'thoughts': thoughts})
