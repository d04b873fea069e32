"""What a prompt begins an answer with, by templates that behave as the published ones do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from align_anything.core.thoughts import closing_of, opened_thought
from tests.models.samples import FAMILIES, NO_THOUGHT, assistant, load, multi_turn, single, user

Tiny = Callable[..., Path]
HEAD = "{{ '<|im_start|>assistant\\n"
TURN = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{% set text = message['content'].split('</think>')[-1].lstrip('\\n') %}"
    "{% set thought = message['content'].split('</think>')[0].split('<think>')[-1].strip('\\n') "
    "if '</think>' in message['content'] else '' %}"
    "{{ '<|im_start|>assistant\\n' + (THOUGHT if loop.last else '') + text + '<|im_end|>\\n' }}"
    "{% else %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endif %}"
    '{% endfor %}{% if add_generation_prompt %}OPENING{% endif %}'
)
EMPTY = "('<think>\\n' + thought + '\\n</think>\\n\\n')"


def template(thought: str, opening: str) -> str:
    return TURN.replace('THOUGHT', thought).replace('OPENING', HEAD + opening + "' }}")


# What finished answers begin with, what a generation prompt adds to its header, and what of it belongs to the answer.
TEMPLATES = {
    'Qwen3, thinking when it likes': (template(EMPTY, ''), ''),
    'Qwen3, told not to think': (template(EMPTY, '<think>\\n\\n</think>\\n\\n'), ''),
    'Qwen3-Thinking, told to think': (template(EMPTY, '<think>\\n'), '<think>\n'),
    'DeepSeek-R1': (template("''", '<think>\\n'), '<think>\n'),
    'another tag': (template("''", '<reasoning>'), '<reasoning>'),
    'Magistral': (template("''", '[THINK]'), '[THINK]'),
    'Command A': (template("''", '<|START_THINKING|>'), '<|START_THINKING|>'),
    'no tag at all': (template("''", 'Let me see. '), 'Let me see. '),
}


@pytest.mark.parametrize('name', TEMPLATES)
@pytest.mark.parametrize('messages', [single()[:1], multi_turn()[:-1]], ids=['one turn', 'several'])
def test_a_prompt_tells_what_it_begins_the_answer_with(name: str, messages: list, tiny: Tiny) -> None:
    text, expected = TEMPLATES[name]
    spec = load(tiny('qwen2'), chat_template=text)
    assert spec.prefill(messages) == expected
    assert spec.generation_prefix(messages).endswith(expected)
    begun = [*messages, {**assistant('It is'), 'prefix': True}]
    assert spec.prefill(begun) == expected + 'It is'
    assert spec.render_prompt(begun).text.endswith(expected + 'It is')


@pytest.mark.parametrize('name', ['Qwen3-Thinking, told to think', 'DeepSeek-R1', 'Magistral'])
def test_a_thought_that_the_template_opens_is_not_opened_again_by_the_row(name: str, tiny: Tiny) -> None:
    text, opened = TEMPLATES[name]
    spec = load(tiny('qwen2'), chat_template=text)
    tag = opened.strip()
    for begun in (f'{tag}\nHmm', f'{tag}Hmm', tag, f'{tag}\nHmm.\n</think>\n\nSo'):
        prompt = spec.render_prompt([*single()[:1], {**assistant(begun), 'prefix': True}]).text
        assert prompt.count(tag) == 1 and ''.join(prompt.split()).endswith(''.join(begun.split())), prompt
        assert spec.prefill([*single()[:1], {**assistant(begun), 'prefix': True}]).count(tag) == 1


@pytest.mark.parametrize('family', FAMILIES)
def test_most_templates_begin_no_answer(family: str, tiny: Tiny) -> None:
    spec = load(tiny(family))
    assert spec.prefill(single()[:1]) == '' == spec.prefill(multi_turn()[:-1])


@pytest.mark.parametrize('family', FAMILIES)
def test_a_response_goes_on_where_the_row_left_off(family: str, tiny: Tiny) -> None:
    """The prompt is what training on an answer that begins so shows of it, and ends with it."""
    spec = load(tiny(family))
    begun = [*multi_turn()[:-1], {**assistant('Let me see:'), 'prefix': True}]
    [whole] = spec.render([*multi_turn()[:-1], assistant('Let me see: yes.')], 'last')
    prompt = spec.render_prompt(begun).text
    # An empty thought is what Qwen3's template writes before a whole answer without one.
    assert ''.join(run.text for run in whole).replace(NO_THOUGHT, '').startswith(prompt) and prompt.endswith(
        'Let me see:'
    )
    assert spec.encode_prompt(begun).weights.sum() == 0
    assert spec.prefill(begun).strip() == 'Let me see:' and spec.generation_prefix(begun).endswith('Let me see:')


def test_thoughts_are_known_by_their_tags() -> None:
    tags = ['<think>', '<think>\n', '<thinking>', '<seed:think>', '<reasoning>\n\n', '[THINK]', '<|START_THINKING|>']
    for tag in [*tags, '◁think▷']:
        assert opened_thought(f'<|im_start|>assistant\n{tag}') == tag
    for other in ('', '<|im_start|>assistant\n', '<think>\n\n</think>\n\n', '<|END_THINKING|>', 'I think', '<|user|>'):
        assert opened_thought(other) == ''


def test_what_answers_begin_with_as_a_rule_is_no_message_of_their_own(tiny: Tiny) -> None:
    spec = load(tiny('qwen2'))
    begun = [user('Why?'), {**assistant('Because'), 'prefix': True}]
    assert spec.generation_prefix(begun) == '<|im_start|>assistant\nBecause'


CLOSED = {
    '<think>\n': '</think>',
    '<reasoning>': '</reasoning>',
    '[THINK]': '[/THINK]',
    '◁think▷': '◁/think▷',
    '<|START_THINKING|>': '<|END_THINKING|>',
    '<|begin_of_thought|>\n': '<|end_of_thought|>',
}


@pytest.mark.parametrize('opened', CLOSED)
def test_what_opens_a_thought_for_generation_closes_it_in_training(opened: str, tiny: Tiny) -> None:
    """Rewards take a tag for one that opens a thought; so does what an answer is trained as."""
    assert opened_thought(f'<|im_start|>assistant\n{opened}') == opened and closing_of(opened) == CLOSED[opened]
    text = template("''", opened.replace('\n', '\\n'))
    spec = load(tiny('qwen2'), chat_template=text)
    messages = single()[:1]
    [runs] = spec.render([*messages, {**assistant('Four.'), 'reasoning_content': 'Two and two.'}])
    assert runs[0].text.endswith(opened)
    lead = '' if opened.endswith('\n') else '\n'
    assert runs[1].text == f'{lead}Two and two.\n{CLOSED[opened]}\n\nFour.'
    assert spec.prefill(messages) == opened
