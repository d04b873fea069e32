"""Each hook of each text+image template, on a row in the dataset's own columns, gives exactly this conversation."""

from __future__ import annotations

from typing import Any

import pytest

from align_anything.core.errors import SampleError
from align_anything.datasets.template_registry import make_formatter

IMAGE = object()
"""Formatters hand the image on without looking at it."""


def asked(text: str) -> dict[str, Any]:
    return {'role': 'user', 'content': [{'type': 'image'}, {'type': 'text', 'text': text}]}


def user(text: str) -> dict[str, Any]:
    return {'role': 'user', 'content': text}


def assistant(text: str) -> dict[str, Any]:
    return {'role': 'assistant', 'content': text}


RANKED = {'image': IMAGE, 'question': 'What?', 'response_1': 'A cat.', 'response_2': 'A dog.'}
AA = {**RANKED, 'overall_response': 2}
REWARD = {**RANKED, 'more_helpful_response_id': 2}
COST = {**RANKED, 'safer_response_id': 2, 'response_1_harmless_rate': -3, 'response_2_harmless_rate': 1}
ANSWERED = {'image': IMAGE, 'prompt': 'What?', 'response': 'A dog.'}
LLF = {'image': IMAGE, 'prompt': 'What?', 'response': 'A cat.', 'refinement': 'A dog.'}
JANUS = {'image': IMAGE, 'question': 'What?', 'better_response': 'A dog.', 'worse_response': 'A cat.'}
CHOSEN = {'image': IMAGE, 'question': 'What?', 'chosen': 'A dog.', 'rejected': 'A cat.'}
GQA = {'image_path': '1.jpg', 'question': 'What?', 'answer': 'dog'}
OK_VQA = {'image': IMAGE, 'question': 'What?', 'answers': ['cat', 'dog', 'dog', 'cow']}
A_OKVQA = {
    'image': IMAGE,
    'question': 'What?',
    'choices': ['cat', 'dog'],
    'correct_choice_idx': 1,
    'rationales': ['It barks.', 'It runs.'],
}
MULTI = {'image': IMAGE, 'questions': ['Who?', 'When?'], 'answers': ['Me', 'Now']}
TURNS = [
    {'from': 'human', 'value': '<image>\nWhat?'},
    {'from': 'gpt', 'value': 'A dog.'},
    {'from': 'human', 'value': 'Sure?'},
    {'from': 'gpt', 'value': 'Yes.'},
]
SHARED = {'conversations': TURNS, 'image': 'a.png'}
SPA_SYSTEM = {'role': 'system', 'content': make_formatter('SPA_VL').system_prompt}

DOG = [asked('What?'), assistant('A dog.')]
CAT = [asked('What?'), assistant('A cat.')]
ROUNDS = [asked('Who?'), assistant('Me'), user('When?'), assistant('Now')]
CHAT = [user('<image>\nWhat?'), assistant('A dog.'), user('Sure?'), assistant('Yes.')]
REASONED = [asked('What? Give your reasons.'), assistant('dog. It barks. It runs.')]
SHARED_MEDIA = {'image': 'a.png', 'video': [], 'audio': []}

SUPERVISED = [
    ('AA_TI2T', ANSWERED, DOG, IMAGE),
    ('AA_TI2T', AA, DOG, IMAGE),
    ('AA_TI2T_LLF', LLF, DOG, IMAGE),
    ('Janus_TI2T', ANSWERED, DOG, IMAGE),
    ('Janus_TI2T', JANUS, DOG, IMAGE),
    ('GQA', GQA, [asked('What?'), assistant('dog')], '1.jpg'),
    ('OK-VQA', OK_VQA, [asked('What?'), assistant('dog')], IMAGE),
    ('OK-VQA', {**OK_VQA, 'answers': ['cat', 'dog']}, [asked('What?'), assistant('cat')], IMAGE),
    ('A-OKVQA', A_OKVQA, REASONED, IMAGE),
    ('OCRVQA', MULTI, ROUNDS, IMAGE),
    ('VisualGenome', MULTI, ROUNDS, IMAGE),
    ('ShareGPT-4o', SHARED, CHAT, 'a.png'),
    ('LLaVA_Pretrain', SHARED, CHAT, 'a.png'),
    ('RLAIFV', CHOSEN, DOG, IMAGE),
    ('SPA_VL', CHOSEN, [SPA_SYSTEM, *DOG], IMAGE),
    ('SafeRLHF_V_Reward', ANSWERED, DOG, IMAGE),
    ('SafeRLHF_V_Reward', REWARD, DOG, IMAGE),
    ('SafeRLHF_V_Cost', ANSWERED, DOG, IMAGE),
    ('SafeRLHF_V_Cost', COST, DOG, IMAGE),
]

PREFERENCE = [
    ('AA_TI2T', AA, DOG, CAT),
    ('AA_TI2T', {**AA, 'overall_response': '1'}, CAT, DOG),
    ('AA_TI2T_LLF', LLF, DOG, CAT),
    ('Janus_TI2T', JANUS, DOG, CAT),
    ('RLAIFV', CHOSEN, DOG, CAT),
    ('SPA_VL', CHOSEN, [SPA_SYSTEM, *DOG], [SPA_SYSTEM, *CAT]),
    ('SafeRLHF_V_Reward', REWARD, DOG, CAT),
    # A cost model must score the less safe answer higher: 2 is safer, so 1 comes first.
    ('SafeRLHF_V_Cost', COST, CAT, DOG),
]

PROMPT_ONLY = [
    ('AA_TI2T', {'image': IMAGE, 'question': 'What?'}, DOG[:1], None),
    ('AA_TI2T_LLF', LLF, DOG[:1], None),
    ('Janus_TI2T', ANSWERED, DOG[:1], None),
    ('GQA', GQA, [asked('What?')], 'dog'),
    ('OK-VQA', OK_VQA, [asked('What?')], 'dog'),
    ('A-OKVQA', A_OKVQA, REASONED[:1], 'dog. It barks. It runs.'),
    ('OCRVQA', MULTI, ROUNDS[:-1], 'Now'),
    ('VisualGenome', MULTI, ROUNDS[:-1], 'Now'),
    ('ShareGPT-4o', SHARED, CHAT[:-1], 'Yes.'),
    ('LLaVA_Pretrain', SHARED, CHAT[:-1], 'Yes.'),
    ('RLAIFV', CHOSEN, DOG[:1], None),
    ('SPA_VL', CHOSEN, [SPA_SYSTEM, DOG[0]], None),
    ('SafeRLHF_V_Reward', REWARD, DOG[:1], None),
    ('SafeRLHF_V_Cost', COST, DOG[:1], None),
]


@pytest.mark.parametrize(('name', 'row', 'expected', 'image'), SUPERVISED)
def test_supervised(name: str, row: dict, expected: list, image: Any) -> None:
    conversation, meta = make_formatter(name).format_supervised_sample(row)
    assert conversation == expected
    assert meta['image'] is image


@pytest.mark.parametrize(('name', 'row', 'better', 'worse'), PREFERENCE)
def test_preference(name: str, row: dict, better: list, worse: list) -> None:
    formatter = make_formatter(name)
    got_better, got_worse, meta = formatter.format_preference_sample(row)
    assert (got_better, got_worse) == (better, worse)
    assert meta['image'] is IMAGE
    assert (meta['better_response'], meta['worse_response']) == (better[-1]['content'], worse[-1]['content'])
    assert not formatter.check_equal(row)
    same = {key: 'A dog.' if value == 'A cat.' else value for key, value in row.items()}
    assert formatter.check_equal(same)


@pytest.mark.parametrize(('name', 'row', 'expected', 'ground_truth'), PROMPT_ONLY)
def test_prompt_only(name: str, row: dict, expected: list, ground_truth: str | None) -> None:
    conversation, meta = make_formatter(name).format_prompt_only_sample(row)
    assert conversation == expected
    assert meta['image'] is row.get('image', row.get('image_path'))
    assert meta.get('ground_truth') == ground_truth


@pytest.mark.parametrize(('name', 'row', 'expected', '_image'), SUPERVISED)
def test_unmatched_takes_the_last_answer_of_another_row(name: str, row: dict, expected: list, _image: Any) -> None:
    formatter = make_formatter(name)
    prompt_row = {key: 'Other?' if value == 'What?' else value for key, value in row.items()}
    conversation, meta = formatter.format_unmatched_supervised_sample(prompt_row, row)
    assert conversation[-1] == expected[-1]
    assert conversation[:-1] == formatter.format_prompt_only_sample(prompt_row)[0]
    assert 'image' in meta and 'ground_truth' not in meta


def test_every_hook_of_every_image_template_is_in_the_tables() -> None:
    names = {row[0] for row in SUPERVISED}
    table = (
        'Janus_TI2T AA_TI2T AA_TI2T_LLF GQA OK-VQA A-OKVQA OCRVQA VisualGenome ShareGPT-4o RLAIFV SPA_VL '
        'SafeRLHF_V_Reward SafeRLHF_V_Cost LLaVA_Pretrain'
    )
    assert names == set(table.split()) == {row[0] for row in PROMPT_ONLY}
    with_preference = {name for name in names if 'format_preference_sample' in make_formatter(name).hooks()}
    assert with_preference == {row[0] for row in PREFERENCE}


def test_cost_tells_which_answer_is_safe_as_a_truth_value_not_a_magnitude() -> None:
    _, _, meta = make_formatter('SafeRLHF_V_Cost').format_preference_sample(COST)
    assert (meta['is_better_safe'], meta['is_worse_safe']) == (False, True)


@pytest.mark.parametrize(
    ('name', 'column'),
    [
        ('AA_TI2T', 'overall_response'),
        ('SafeRLHF_V_Reward', 'more_helpful_response_id'),
        ('SafeRLHF_V_Cost', 'safer_response_id'),
    ],
)
def test_rows_without_a_usable_preference_are_refused(name: str, column: str) -> None:
    formatter = make_formatter(name)
    valid = [formatter.check_validation({**RANKED, column: value}) for value in (1, 2, '1', 0, 3, None, 'both')]
    assert valid == [True, True, True, False, False, False, False]
    assert formatter.check_validation(ANSWERED)
    with pytest.raises(SampleError, match=column):
        formatter.format_preference_sample({**RANKED, column: 3})


def test_a_question_that_places_its_image_itself_keeps_its_order() -> None:
    conversation, _ = make_formatter('SPA_VL').format_prompt_only_sample({**CHOSEN, 'question': 'What?\n<image>'})
    assert conversation == [SPA_SYSTEM, user('What?\n<image>')]


def test_several_images_get_as_many_placeholders() -> None:
    conversation, meta = make_formatter('AA_TI2T').format_supervised_sample({**ANSWERED, 'image': ['a', 'b']})
    assert [part['type'] for part in conversation[0]['content']] == ['image', 'image', 'text']
    assert meta['image'] == ['a', 'b']


def test_share_gpt_templates_hand_on_every_kind_of_media() -> None:
    assert make_formatter('LLaVA_Pretrain').format_supervised_sample(SHARED)[1] == SHARED_MEDIA


def test_image_folder_is_an_option() -> None:
    assert make_formatter('GQA', {'image_folder': '/data/gqa'}).folders() == {'image': '/data/gqa'}


BAD_ROWS = [
    ('OCRVQA', {**MULTI, 'answers': ['Me']}, '2 questions but 1 answers'),
    ('OCRVQA', {**MULTI, 'answers': [], 'questions': []}, '0 questions but 0 answers'),
    ('VisualGenome', {**MULTI, 'questions': 'Who?'}, "'questions' should be a list but is str"),
    ('VisualGenome', {**MULTI, 'answers': ['Me', None]}, "entry 1 of column 'answers' should be text"),
    ('A-OKVQA', {**A_OKVQA, 'correct_choice_idx': 2}, "is 2, but 'choices' has 2 entries"),
    ('A-OKVQA', {**A_OKVQA, 'correct_choice_idx': -1}, "is -1, but 'choices'"),
    ('OK-VQA', {**OK_VQA, 'answers': []}, 'empty list'),
    ('AA_TI2T', {**ANSWERED, 'image': None}, "column 'image' is null"),
    ('GQA', {'question': 'What?', 'answer': 'dog', 'image': 'x'}, "no column 'image_path'"),
    ('LLaVA_Pretrain', {'conversation_list': TURNS}, "Did you mean 'conversation_list'"),
]


@pytest.mark.parametrize(('name', 'row', 'message'), BAD_ROWS)
def test_bad_rows_say_what_is_wrong(name: str, row: dict, message: str) -> None:
    with pytest.raises(SampleError) as caught:
        make_formatter(name).format_supervised_sample(row)
    assert message in str(caught.value)


def test_cost_needs_numbers_for_safety() -> None:
    with pytest.raises(SampleError, match='response_1_harmless_rate'):
        make_formatter('SafeRLHF_V_Cost').format_preference_sample({**COST, 'response_1_harmless_rate': 'low'})
