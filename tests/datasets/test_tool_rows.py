"""Rows with tools, calls, results and thoughts: every form that data have, through every hook."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align_anything.core.errors import SampleError
from align_anything.core.types import Example, Skipped
from align_anything.datasets.conversation import bind_media
from align_anything.datasets.dataset import ExampleDataset, SupervisedTask
from align_anything.datasets.formatters.base import BaseFormatter
from align_anything.datasets.preference import AnswersTask, PreferenceTask, UnpairedTask
from align_anything.datasets.prompts import PromptTask
from align_anything.datasets.source_loading import load_sources
from align_anything.datasets.template_registry import make_formatter
from align_anything.datasets.tool_calls import calls_of, tools_of
from align_anything.rewards.messages import from_json, to_json
from tests.models.published import TOOL, answer, call, learnt
from tests.models.samples import load

Tiny = Callable[..., Path]
ARGUMENTS = {'a': 2, 'b': 3}
CALL = {'id': 'c1', 'type': 'function', 'function': {'name': 'add', 'arguments': ARGUMENTS}}
QUESTION = {'role': 'user', 'content': 'What is 2 + 3?'}
CALLING = {'role': 'assistant', 'content': None, 'tool_calls': [CALL]}
RESULT = {'role': 'tool', 'tool_call_id': 'c1', 'content': '5'}
SAID = {'role': 'assistant', 'content': 'It is 5.'}
ROW = {'messages': [QUESTION, CALLING, RESULT, SAID], 'tools': [TOOL]}
TEXTUAL = {
    'messages': [
        QUESTION,
        {'role': 'assistant', 'content': '', 'tool_calls': json.dumps([{**CALL, 'index': 0}])},
        {**RESULT, 'name': None},
        SAID,
    ],
    'tools': json.dumps([TOOL]),
}


def bound(row: dict[str, Any], template: str = 'Messages', **options: Any) -> list[dict[str, Any]]:
    conversation, meta = make_formatter(template, options).format_supervised_sample(row)
    return bind_media(conversation, meta)


@pytest.mark.parametrize(
    'value',
    [[TOOL], TOOL, json.dumps([TOOL]), json.dumps(TOOL), [json.dumps(TOOL)], [TOOL['function']], TOOL['function']],
)
def test_tools_in_every_form(value: Any) -> None:
    assert tools_of(value) == [TOOL]


@pytest.mark.parametrize('value', [None, '', ' ', '[]', [], {}, 'null'])
def test_no_tools_in_every_form(value: Any) -> None:
    assert tools_of(value) == []


@pytest.mark.parametrize(
    'value',
    [
        [CALL],
        CALL,
        json.dumps([CALL]),
        [{**CALL, 'function': {'name': 'add', 'arguments': json.dumps(ARGUMENTS)}}],
        [{'id': 'c1', 'name': 'add', 'arguments': ARGUMENTS}],
        [{**CALL, 'index': 0, 'name': None}],
    ],
)
def test_calls_in_every_form(value: Any) -> None:
    assert calls_of('turn 1', value) == [CALL]


@pytest.mark.parametrize(
    ('value', 'reason'),
    [
        ('[', 'should be JSON'),
        ([{'function': {'arguments': {}}}], "no record with a 'name'"),
        (['add'], "no record with a 'name'"),
        ([{'name': 'add', 'arguments': '[1, 2]'}], 'are no object'),
        ([{'name': 'add', 'arguments': '{"a": '}], 'should be JSON'),
        ([{**CALL, 'weight': 0}], 'has weight, which means nothing'),
    ],
)
def test_bad_calls_say_what_is_wrong(value: Any, reason: str) -> None:
    with pytest.raises(SampleError, match=reason):
        calls_of('turn 1', value)


@pytest.mark.parametrize('value', ['[', [{'description': 'x'}], [3], 7])
def test_bad_tools_say_what_is_wrong(value: Any) -> None:
    with pytest.raises(SampleError, match="'tools'"):
        tools_of(value)


def test_rows_of_either_form_are_the_same_conversation() -> None:
    conversation = bound(ROW)
    assert bound(TEXTUAL) == conversation
    assert conversation[0]['tools'] == [TOOL] and conversation[1]['tool_calls'] == [CALL]
    assert conversation[1]['content'] == [] and conversation[2]['tool_call_id'] == 'c1'
    legacy = {'role': 'assistant', 'content': None, 'function_call': {'name': 'add', 'arguments': '{"a": 2, "b": 3}'}}
    named = {key: value for key, value in CALL.items() if key != 'id'}
    assert bound({'messages': [QUESTION, legacy, SAID]})[1]['tool_calls'] == [named]
    talk = [
        {'from': 'human', 'value': 'What is 2 + 3?'},
        {'from': 'function_call', 'value': json.dumps({'name': 'add', 'arguments': ARGUMENTS})},
        {'from': 'observation', 'value': '5'},
        {'from': 'gpt', 'value': 'It is 5.'},
    ]
    shared = bound({'conversations': talk, 'tools': json.dumps([TOOL])}, 'ShareGPT')
    assert [turn['role'] for turn in shared] == ['user', 'assistant', 'tool', 'assistant']
    assert shared[0]['tools'] == [TOOL] and shared[1]['tool_calls'] == [named]


@pytest.mark.parametrize('key', ['reasoning_content', 'reasoning', 'thinking'])
def test_thoughts_under_their_names(key: str) -> None:
    turns = bound({'messages': [QUESTION, {**SAID, key: 'I add.', 'content': '5'}]})
    assert turns[1] == {'role': 'assistant', 'content': [{'type': 'text', 'text': '5'}], 'reasoning_content': 'I add.'}
    assert 'reasoning_content' not in bound({'messages': [QUESTION, {**SAID, key: ' '}]})[1]


@pytest.mark.parametrize(
    ('turns', 'reason'),
    [
        ([QUESTION, {'role': 'assistant', 'content': None}], 'null content'),
        ([QUESTION, {'role': 'assistant', 'content': None, 'tool_calls': []}], 'null content'),
        ([{**QUESTION, 'reasoning_content': 'hm'}, SAID], 'which only assistant turns have'),
        ([QUESTION, {**SAID, 'reasoning': 'a', 'thinking': 'b'}], 'one text as its thought'),
        ([QUESTION, {**SAID, 'thinking': ['a']}], 'one text as its thought'),
    ],
)
def test_bad_turns_say_what_is_wrong(turns: list[Any], reason: str) -> None:
    with pytest.raises(SampleError, match=reason):
        bound({'messages': turns})


def test_a_tool_may_have_nothing_to_tell() -> None:
    assert bound({**ROW, 'messages': [QUESTION, CALLING, {**RESULT, 'content': ''}, SAID]})[2]['content'] == []


class Own(BaseFormatter):
    """A user's template that puts tools into `meta`."""

    def format_supervised_sample(self, raw_sample: Any) -> Any:
        return raw_sample['messages'], {'tools': raw_sample['tools'], 'label': 1}


def test_a_users_template_puts_tools_into_meta(tiny: Tiny, tmp_path: Path) -> None:
    conversation, meta = Own().format_supervised_sample(TEXTUAL)
    assert bind_media(conversation, meta) == bound(ROW)


def dataset(folder: Path, task: Any, rows: list[dict[str, Any]], template: str, **options: Any) -> ExampleDataset:
    path = folder / 'rows.jsonl'
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return ExampleDataset(load_sources(str(path), template, **options), task, 'text_to_text', frozenset())


@pytest.mark.parametrize('manner', ['qwen3', 'llama', 'nemotron', 'gpt_oss'])
def test_every_hook_bears_tools(manner: str, tiny: Tiny, tmp_path: Path) -> None:
    spec = load(tiny('qwen3' if manner == 'qwen3' else 'llama', template=manner))
    pair = {'prompt': [QUESTION], 'chosen': [CALLING, RESULT, SAID], 'rejected': 'I do not know.', 'tools': [TOOL]}
    labelled = [
        {'prompt': [QUESTION], 'completion': [CALLING, RESULT, SAID], 'label': True, 'tools': [TOOL]},
        {'prompt': [QUESTION], 'completion': 'No idea.', 'label': False, 'tools': [TOOL]},
    ]
    chosen, refused = [call(manner), answer(manner, 'It is 5.')], [answer(manner, 'I do not know.')]

    def first(task: Any, rows: list[dict[str, Any]], template: str) -> Example:
        found = dataset(tmp_path, task, rows, template)[0]
        assert isinstance(found, Example), found
        assert 'Adds two numbers.' in spec.tokenizer.decode(found.prompt.ids)
        assert 'tools' not in found.meta
        return found

    assert learnt(spec, first(SupervisedTask(spec.encode), [ROW], 'Messages')) == chosen
    example = first(PreferenceTask(spec.encode_group), [pair], 'Preference')
    assert [learnt(spec, example, number) for number in (0, 1)] == [chosen, refused]
    example = first(UnpairedTask(spec.encode_group), labelled, 'Unpaired')
    assert learnt(spec, example) == chosen
    assert spec.tokenizer.decode(example.unmatched.ids) == answer(manner, 'No idea.')
    example = first(UnpairedTask(spec.encode_group), [pair, {**pair, 'chosen': 'Five.'}], 'Preference')
    assert [learnt(spec, example, number) for number in (0, 1)] == [chosen, refused]
    example = first(PreferenceTask(spec.encode_group, judged=True), [pair], 'Preference')
    read = [spec.tokenizer.decode(piece.ids) for piece in example.responses]
    assert '"a": 2' in read[0] and read[0].endswith(answer(manner, 'It is 5.')) and read[1] == refused[0]
    example = first(AnswersTask(spec.encode_group), [ROW], 'Messages')
    assert learnt(spec, example) == chosen[1:]
    prompted = first(PromptTask(spec.encode_prompt, 2048), [ROW], 'Messages')
    assert '"a": 2' in spec.tokenizer.decode(prompted.prompt.ids) and prompted.meta == {'ground_truth': 'It is 5.'}
    asked = first(PromptTask(spec.encode_prompt, 2048), [{**ROW, 'messages': [QUESTION, CALLING]}], 'Messages')
    assert '"a": 2' not in spec.tokenizer.decode(asked.prompt.ids) and asked.meta == {}


def test_calls_tell_answers_apart(tiny: Tiny, tmp_path: Path) -> None:
    spec = load(tiny('qwen3'))
    other = {**CALLING, 'tool_calls': [{**CALL, 'function': {'name': 'add', 'arguments': {'a': 2, 'b': 4}}}]}
    row = {'prompt': [QUESTION], 'chosen': [CALLING], 'rejected': [other], 'tools': [TOOL]}
    example = dataset(tmp_path, PreferenceTask(spec.encode_group), [row], 'Preference')[0]
    assert isinstance(example, Example), example
    assert ['"b": 3' in learnt(spec, example, 0)[0], '"b": 4' in learnt(spec, example, 1)[0]] == [True, True]
    skipped = dataset(tmp_path, PreferenceTask(spec.encode_group), [{**row, 'rejected': [CALLING]}], 'Preference')[0]
    assert isinstance(skipped, Skipped) and 'both answers are the same' in skipped.reason


def test_reward_services_get_calls_and_tools() -> None:
    conversation = bound(ROW)
    assert from_json(json.loads(json.dumps(to_json(conversation, send_media=False)))) == conversation
