"""Calls are read back in the form in which each chat template writes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from align_anything.core.thoughts import opened_thought
from align_anything.models.call_form import CallForm, JSONCalls, PythonCalls, TaggedCalls, call_form
from align_anything.models.chat_form import message_of
from align_anything.models.pretrained_model import load_spec
from align_anything.models.rendering import ChatRenderer
from tests.models.published import MANNERS, WRITES_TOOLS

CALL = {'type': 'function', 'function': {'name': 'weather', 'arguments': {'city': 'Rome {"x"}', 'days': [1, 2]}}}
HERMES = JSONCalls('<tool_call>', '</tool_call>', 'name', 'arguments')
THOUGHT = '<think>Is <tool_call> right?</think>'
SEVERAL = {'qwen3', 'qwen3_thinking', 'nemotron', 'mistral'}


def renderer_of(tiny: Callable[..., Path], manner: str) -> ChatRenderer:
    return load_spec(str(tiny(MANNERS[manner], template=manner)), model_max_length=None).renderer


def generated(renderer: ChatRenderer, said: str, calls: int) -> str:
    """What a model that has learned the template writes for an answer with calls."""
    asked = [message_of('user', 'x')]
    prompt = renderer.text(asked, add_generation_prompt=True)
    prompt = prompt.removesuffix(opened_thought(prompt))
    full = renderer.text([*asked, message_of('assistant', said, tool_calls=[CALL] * calls)])
    assert full.startswith(prompt)
    ends = [renderer.end_of_turn_id, renderer.call_end_id]
    text = full[len(prompt) :].rstrip()
    for mark in [renderer.tokenizer.convert_ids_to_tokens(token) for token in ends if token is not None]:
        text = text.removesuffix(mark)
    return text


@pytest.mark.parametrize('manner', WRITES_TOOLS)
def test_what_a_template_writes_is_read(tiny: Callable[..., Path], manner: str) -> None:
    renderer = renderer_of(tiny, manner)
    form = call_form(renderer)
    assert form is not None
    for calls in (1, 2) if manner in SEVERAL else (1,):
        text = generated(renderer, '', calls)
        said, found = form.split(text)
        assert [call['function']['name'] for call in found] == ['weather'] * calls
        assert all(json.loads(call['function']['arguments']) == CALL['function']['arguments'] for call in found)
        assert len({call['id'] for call in found}) == calls
        assert 'weather' not in said and '{' not in said
        for end in range(len(text) + 1):
            shown = text[: end - form.holds_back(text[:end])]
            assert said.startswith(shown), 'nothing of a call is shown before it is known to be one'


@pytest.mark.parametrize('manner', ['gemma2', 'gemma3_text'])
def test_a_template_without_calls_has_no_form(tiny: Callable[..., Path], manner: str) -> None:
    assert call_form(renderer_of(tiny, manner)) is None


@pytest.mark.parametrize(
    'text',
    [
        'No call at all.',
        '<tool_call>\nnot json\n</tool_call>',
        '<tool_call>\n{"name": "f"',
        '<tool_call>\n{"arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "f", "arguments": [1]}\n</tool_call>',
        '<tool_call></tool_call>',
        '',
    ],
)
def test_what_is_no_call_is_said_as_it_is(text: str) -> None:
    assert HERMES.split(text) == (text, [])


PLAIN = JSONCalls('', '', 'name', 'parameters')
LISTED = JSONCalls('[TOOL_CALLS]', '', 'name', 'arguments')
NAMED = JSONCalls('[TOOL_CALLS]', '', 'name', 'arguments', '[ARGS]')
TAGGED = TaggedCalls('<tool_call>', '', '<arg_key>', '</arg_key>\n<arg_value>', '</arg_value>')
PYTHON = PythonCalls('', '')
ONE, TWO = '{"name": "f", "arguments": {"a": {"b": [1, "}{"]}}}', '{"name": "g", "arguments": "{}"}'
F, G = ('f', {'a': {'b': [1, '}{']}}), ('g', {})


@pytest.mark.parametrize(
    ('form', 'text', 'said', 'calls'),
    [
        (HERMES, f'I look.\n<tool_call>\n{ONE}\n</tool_call>\nWait for it.', 'I look.', [F]),
        (HERMES, f'<tool_call>{ONE}</tool_call> then <tool_call>{TWO}</tool_call> done', '', [F, G]),
        (HERMES, f'<tool_call>\n```json\n{ONE}\n```\n</tool_call>', '', [F]),
        (HERMES, f'<think>Is <tool_call> right?</think>\n<tool_call>{TWO}</tool_call>', THOUGHT, [G]),
        (LISTED, f'[TOOL_CALLS][{ONE}, {TWO}] I wait.', '', [F, G]),
        (NAMED, '[TOOL_CALLS]f[ARGS]{"a": 1} and [TOOL_CALLS]g[ARGS]{}', '', [('f', {'a': 1}), G]),
        (PLAIN, '```json\n{"name": "g", "parameters": {}}\n```\nThat is all.', '', [G]),
        (PLAIN, '{"name": "g", "parameters": {}}; {"name": "g", "parameters": {}}', '', [G, G]),
        (TAGGED, '<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>NaN</arg_value>', '', [('f', {'a': 'NaN'})]),
        (PYTHON, "[f(a={'b': ['é', None]}), g()]", '', [('f', {'a': {'b': ['é', None]}}), G]),
        (PYTHON, '```python\n[g()]\n```', '', [G]),
        (HERMES, '<tool_call>{"name": "f", "arguments": {"a": "\\ud800é"}}</tool_call>', '', [('f', {'a': '?é'})]),
        (PYTHON, "[f(a='\\ud800')]", '', [('f', {'a': '?'})]),
    ],
)  # fmt: skip
def test_calls_are_read_whatever_stands_around_them(
    form: CallForm, text: str, said: str, calls: list[tuple[str, object]]
) -> None:
    told, found, problem = form.read(text)
    assert (told, problem) == (said, '')
    read = [(call['function']['name'], json.loads(call['function']['arguments'])) for call in found]
    assert read == calls


@pytest.mark.parametrize(
    ('form', 'text', 'reason'),
    [
        (HERMES, '<tool_call>\n{"name": "f"', 'no JSON'),
        (HERMES, f'<tool_call>{ONE}</tool_call><tool_call>{{"name"', 'no JSON'),
        (HERMES, '<tool_call></tool_call>', 'nothing in it'),
        (HERMES, '<tool_call>{"arguments": {}}</tool_call>', "a text under 'name'"),
        (HERMES, '<tool_call>{"name": "f", "arguments": [1]}</tool_call>', "'arguments' is no object"),
        (HERMES, '<tool_call>{"name": "f", "arguments": "{"}</tool_call>', "under 'arguments' is no JSON"),
        (HERMES, '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>', 'NaN is no number'),
        (HERMES, '<tool_call>{"name": "f", "arguments": {"a": 1e999}}</tool_call>', 'none of JSON'),
        (HERMES, '<tool_call>{"name": "f", "arguments": ' + '[' * 200_000, 'nested too deeply'),
        (HERMES, '<tool_call>{"name": "f", "arguments": {"a": ' + '1' * 5000 + '}}</tool_call>', 'no JSON'),
        (PLAIN, '{"name": "f", "parameters": {', 'no JSON'),
        (TAGGED, '<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>Ro', 'takes a key'),
        (TAGGED, '<tool_call>', 'names no tool'),
        (PYTHON, '[f(a=1', 'no list of calls'),
        (PYTHON, "[f(a=__import__('os'))]", 'no list of calls'),
        (PYTHON, '[f(**{})]', 'no list of calls'),
        (PYTHON, '[f(a={1})]', 'none of JSON'),
        (PYTHON, '[f(a=' + '(' * 5000, 'no list of calls'),
        (PYTHON, '[f(a=' + '-' * 50_000 + '1)]', 'no list of calls'),
    ],
)
def test_a_call_that_cannot_be_read_says_why(form: CallForm, text: str, reason: str) -> None:
    said, calls, problem = form.read(text)
    assert (said, calls) == (text, []) and reason in problem and len(problem) < 200


@pytest.mark.parametrize('text', ['f(x=2) is 4.', '{"name": "Bob"}', '[1, 2]', '{"age": 3', '', '{[('])
def test_an_answer_is_no_call(text: str) -> None:
    assert PLAIN.read(text) == PYTHON.read(text) == HERMES.read(text) == (text, [], '')


def test_words_before_a_call_are_said_and_shown_at_once() -> None:
    text = 'Let me look.\n<tool_call>\n{"name": "f", "arguments": "{\\"a\\": 1}"}\n</tool_call>'
    said, (call,) = HERMES.split(text)
    assert said == 'Let me look.' and json.loads(call['function']['arguments']) == {'a': 1}
    assert HERMES.holds_back('Let me look') == 0
    assert HERMES.holds_back('Let me look.\n<tool') == len('\n<tool')
    assert HERMES.holds_back('a < b') == 0


def test_an_answer_that_is_a_bare_call_is_held_back_from_its_first_letter() -> None:
    bare = JSONCalls('', '', 'name', 'parameters')
    assert bare.holds_back(' {"na') == len(' {"na') and bare.holds_back('Hello {') == 0
    assert bare.split('{"name": "f", "parameters": {}}')[1][0]['function']['name'] == 'f'
    assert bare.split('{"age": 3}') == ('{"age": 3}', [])


HEAD = (
    '{%- for tool in tools or [] -%}{{ tool | tojson }}{%- endfor -%}'
    "{%- for message in messages -%}{{ '<|im_start|>' + message['role'] + '\n' + (message['content'] or '') }}"
    "{%- for call in message['tool_calls'] or [] -%}{%- set made = call['function'] -%}"
)
TAIL = "{%- endfor -%}{{ '<|im_end|>\n' }}{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}"
VALUE = '{{ value if value is string else (value | tojson) }}'
OTHERS = {
    'glm': "{{ '<tool_call>' + made['name'] }}{%- for key, value in made['arguments'].items() -%}"
    "{{ '\n<arg_key>' + key + '</arg_key>\n<arg_value>' }}" + VALUE + "{{ '</arg_value>' }}"
    "{%- endfor -%}{{ '\n</tool_call>' }}",
    'qwen3_coder': "{{ '\n<tool_call>\n<function=' + made['name'] + '>\n' }}"
    "{%- for key, value in made['arguments'].items() -%}{{ '<parameter=' + key + '>\n' }}" + VALUE + ''
    "{{ '\n</parameter>\n' }}{%- endfor -%}{{ '</function>\n</tool_call>' }}",
    'llama4': "{{ '[' + made['name'] + '(' }}{%- for key, value in made['arguments'].items() -%}"
    '{{ key + \'=\' }}{%- if value is string -%}{{ "\'" + value + "\'" }}{%- else -%}{{ value }}{%- endif -%}'
    "{%- if not loop.last -%}{{ ', ' }}{%- endif -%}{%- endfor -%}{{ ')]' }}",
}


@pytest.mark.parametrize('manner', OTHERS)
def test_calls_between_tags_and_calls_of_python_are_read(tiny: Callable[..., Path], manner: str) -> None:
    tokenizer = load_spec(str(tiny('qwen3')), model_max_length=None).tokenizer
    renderer = ChatRenderer(tokenizer, None, HEAD + OTHERS[manner] + TAIL + '{%- endif -%}', {})
    form = call_form(renderer)
    assert form is not None
    said, (call,) = form.split(generated(renderer, '', 1))
    assert said == '' and call['function']['name'] == 'weather'
    assert json.loads(call['function']['arguments']) == CALL['function']['arguments']
    for text in ('No call.', '[1, 2]', 'f(1)', "[f(a=__import__('os'))]", '<tool_call>', '[f(a=1'):
        assert form.split(text) == (text, [])
