"""Chat templates in the manner of published ones: every answer is trained as inference shows it, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from align_anything.core.errors import SampleError
from align_anything.core.types import Conversation
from align_anything.models.family import FamilySpec
from tests.models.published import (
    CALL,
    MANNERS,
    OPENS_THOUGHT,
    PLAIN,
    REWRITES,
    THINKING,
    TOOL,
    WITH_TOOL,
    WRITES_THOUGHTS,
    WRITES_TOOLS,
    answer,
    call,
    learnt,
    shown_at_inference,
    whole,
)
from tests.models.samples import assistant, load, picture, text, user

Tiny = Callable[..., Path]


@pytest.fixture
def spec_in(tiny: Tiny) -> Callable[..., FamilySpec]:
    return lambda manner, **how: load(tiny(MANNERS[manner], template=manner), **how)


def begins_as_inference(spec: FamilySpec, example: Any, conversation: Conversation, tools: Any = None) -> None:
    """Each answer stands behind exactly the tokens that plain transformers would generate it from."""
    answers = [turn for turn, message in enumerate(conversation) if message['role'] == 'assistant']
    stretches = []
    for piece in example.responses[0].sequences:
        ids, weights = whole(example, piece)
        starts = (torch.nn.functional.pad((weights > 0).long(), (1, 0)).diff() == 1).nonzero().flatten()
        stretches += [ids[:start].tolist() for start in starts]
    assert len(stretches) == len(answers)
    for turn, found in zip(answers, stretches, strict=True):
        assert spec.tokenizer.decode(found) == spec.tokenizer.decode(
            shown_at_inference(spec, conversation[:turn], tools)
        )
        assert found == shown_at_inference(spec, conversation[:turn], tools)


@pytest.mark.parametrize('manner', MANNERS)
def test_each_answer_of_a_conversation_is_trained_as_inference_shows_it(manner: str, spec_in: Any) -> None:
    spec = spec_in(manner)
    assert spec.renderer.splits == (manner in REWRITES)
    example = spec.encode(PLAIN)
    assert len(example.responses) == 1 and len(example.responses[0].earlier) == (manner in REWRITES)
    assert learnt(spec, example) == [answer(manner, 'Hello.'), answer(manner, 'Goodbye.')]
    begins_as_inference(spec, example, PLAIN)
    assert learnt(spec, spec.encode(PLAIN, 'last')) == [answer(manner, 'Goodbye.')]


@pytest.mark.parametrize('manner', REWRITES)
def test_the_history_is_shared_to_its_end(manner: str, spec_in: Any) -> None:
    """A longer conversation adds its own tokens only, not the history once more for each of its answers."""
    spec = spec_in(manner)
    turns = [[user(f'Question {number}?'), assistant(f'Answer {number}.')] for number in range(8)]
    sizes = [len(spec.encode(sum(turns[:number], []))) for number in (6, 7, 8)]
    assert abs((sizes[2] - sizes[1]) - (sizes[1] - sizes[0])) <= 2, sizes


@pytest.mark.parametrize('manner', WRITES_THOUGHTS)
def test_every_thought_is_trained_and_none_stands_in_the_history(manner: str, spec_in: Any) -> None:
    spec = spec_in(manner)
    example = spec.encode(THINKING)
    thoughts = [answer(manner, '5', 'Two and three are five.'), answer(manner, '2', 'One and one are two.')]
    assert learnt(spec, example) == thoughts
    begins_as_inference(spec, example, THINKING)
    assert 'five' not in spec.tokenizer.decode(example.prompt.ids)
    assert learnt(spec, spec.encode(THINKING, 'last')) == thoughts[1:]
    if manner != 'gpt_oss':
        # The same thoughts in the text of the answers.
        inline = [
            {**assistant(f'<think>\n{turn["reasoning_content"]}\n</think>\n\n{turn["content"][0]["text"]}')}
            if 'reasoning_content' in turn
            else turn
            for turn in THINKING
        ]
        assert learnt(spec, spec.encode(inline)) == thoughts


@pytest.mark.parametrize('manner', [manner for manner in MANNERS if manner not in WRITES_THOUGHTS])
def test_a_thought_that_would_be_lost_is_refused_where_it_is_trained(manner: str, spec_in: Any) -> None:
    spec = spec_in(manner)
    with pytest.raises(SampleError, match="does not write any.*into the answer's content"):
        spec.encode(THINKING)
    in_history = [THINKING[0], THINKING[1], user('Thanks.'), assistant('Welcome.')]
    assert learnt(spec, spec.encode(in_history, 'last')) == [answer(manner, 'Welcome.')]


@pytest.mark.parametrize('manner', WRITES_TOOLS)
def test_calls_are_trained_and_results_are_not(manner: str, spec_in: Any) -> None:
    spec = spec_in(manner)
    example = spec.encode(WITH_TOOL)
    assert learnt(spec, example) == [call(manner), answer(manner, 'It is 5.')]
    assert 'Adds two numbers.' in spec.tokenizer.decode(example.prompt.ids)
    if manner != 'mistral':  # takes no other ids than its own
        begins_as_inference(spec, example, WITH_TOOL, [TOOL])
    prompt = spec.tokenizer.decode(spec.encode_prompt(WITH_TOOL[:3]).ids)
    assert 'Adds two numbers.' in prompt and '5' in prompt.split('add')[-1]
    assert spec.renderer.call_end_id in spec.stop_token_ids
    assert call(manner).endswith(spec.tokenizer.convert_ids_to_tokens(spec.renderer.call_end_id))


def test_what_a_call_thinks_is_trained_with_it(spec_in: Any) -> None:
    thinking = [*WITH_TOOL[:1], {**WITH_TOOL[1], 'reasoning_content': 'I add.'}, *WITH_TOOL[2:]]
    found = {manner: learnt(spec_in(manner), spec_in(manner).encode(thinking))[0] for manner in WRITES_TOOLS[:2]}
    assert found['qwen3'] == call('qwen3').replace('<think>\n\n', '<think>\nI add.\n')
    assert found['qwen3_thinking'] == 'I add.' + call('qwen3_thinking')


@pytest.mark.parametrize('way', ['thought', 'text'])
def test_the_answer_to_a_call_with_a_thought_is_trained_behind_that_thought(way: str, spec_in: Any) -> None:
    """gpt-oss shows the thought of a call until the answer is given, and takes it off once it is."""
    spec = spec_in('gpt_oss')
    said = {'reasoning_content': 'I add.'} if way == 'thought' else {'content': [text('I add.')]}
    conversation = [WITH_TOOL[0], {**WITH_TOOL[1], **said}, WITH_TOOL[2]]
    conversation.append({**assistant('It is 5.'), 'reasoning_content': 'That is the sum.'})
    if way == 'text':
        # The tiny template writes no text beside a call; the published one makes a thought of it.
        written = "message['thinking'] | default(said(message['content']) if message['tool_calls'] else '')"
        template = spec.renderer.template.replace("message['thinking'] | default('')", written)
        assert template != spec.renderer.template
        spec = spec_in('gpt_oss', chat_template=template)
    example = spec.encode(conversation)
    thought = '<|channel|>analysis<|message|>I add.<|end|><|start|>assistant'
    assert learnt(spec, example) == [thought + call('gpt_oss'), answer('gpt_oss', 'It is 5.', 'That is the sum.')]
    begins_as_inference(spec, example, conversation, [TOOL])


@pytest.mark.parametrize('manner', WRITES_TOOLS)
def test_none_of_several_calls_is_lost(manner: str, spec_in: Any) -> None:
    spec = spec_in(manner)
    second = {**CALL, 'id': 'c2', 'function': {'name': 'add', 'arguments': {'a': 4, 'b': 5}}}
    conversation = [WITH_TOOL[0], {**WITH_TOOL[1], 'tool_calls': [CALL, second]}]
    if manner in ('llama', 'gpt_oss'):  # one refuses several calls, the other writes the first of them
        with pytest.raises(SampleError, match="one call at a time|does not write the call of 'add'"):
            spec.encode(conversation)
        return
    (written,) = learnt(spec, spec.encode(conversation))
    assert written.count('"a": 2') == written.count('"a": 4') == 1


def test_a_thought_in_the_text_is_trained_once_where_the_template_keeps_it_there(tiny: Tiny) -> None:
    template = (
        "{%- for message in messages -%}{{ '<|im_start|>' + message['role'] + '\n' }}"
        "{%- if message['role'] == 'assistant' and '</think>' not in message['content'] -%}{{ '<think></think>' }}"
        "{%- endif -%}{{ message['content'] + '<|im_end|>\n' }}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n<think>\n' }}{%- endif -%}"
    )
    spec = load(tiny('qwen3'), chat_template=template)
    for written in ('<think>\nI add.\n</think>\n\n5', 'I add.\n</think>\n\n5', 'I add.</think>5'):
        found = learnt(spec, spec.encode([user('2 + 3?'), assistant(written)]))
        assert found == ['I add.\n</think>\n\n5<|im_end|>'], written


@pytest.mark.parametrize('manner', [manner for manner in MANNERS if manner not in WRITES_TOOLS])
def test_tools_that_a_template_would_lose_are_refused(manner: str, spec_in: Any) -> None:
    spec = spec_in(manner)
    with pytest.raises(SampleError, match='has tools, but the chat template does not write any'):
        spec.encode(WITH_TOOL)
    if manner != 'deepseek_r1':  # writes calls, but no description of tools
        undescribed = [{key: value for key, value in turn.items() if key != 'tools'} for turn in WITH_TOOL]
        with pytest.raises(SampleError, match='calls a tool, but the chat template writes no calls'):
            spec.encode(undescribed)


def test_arguments_are_text_where_a_template_takes_nothing_else(spec_in: Any) -> None:
    """DeepSeek's published templates put them between texts, which refuses an object."""
    spec = spec_in('deepseek_r1')
    undescribed = [{key: value for key, value in turn.items() if key != 'tools'} for turn in WITH_TOOL]
    called = next(text for text in learnt(spec, spec.encode(undescribed)) if 'tool_call_begin' in text)
    arguments = WITH_TOOL[1]['tool_calls'][0]['function']['arguments']
    assert f'```json\n{json.dumps(arguments)}\n```' in called


def test_results_of_tools_may_be_pictures(tiny: Tiny) -> None:
    spec = load(tiny('qwen3_vl'))
    shown = {**WITH_TOOL[2], 'content': [picture(40, 40), {'type': 'text', 'text': 'the plot'}]}
    example = spec.encode([*WITH_TOOL[:2], shown, assistant('A line.')])
    found = learnt(spec, example)
    assert len(found) == 2 and '"name": "add"' in found[0] and found[1] == 'A line.<|im_end|>'
    assert sum(piece.media_counts.get('image', 0) for piece in (example.prompt, *example.responses)) == 1


@pytest.mark.parametrize('manner', MANNERS)
def test_developer_and_system_turns_are_what_the_template_knows(manner: str, spec_in: Any, capsys: Any) -> None:
    capsys.readouterr()
    spec = spec_in(manner)
    told = {'role': 'developer', 'content': [{'type': 'text', 'text': 'Be brief.'}]}
    prompts = [
        spec.tokenizer.decode(spec.encode([{**told, 'role': role}, *PLAIN[:2]]).prompt.ids)
        for role in ('developer', 'system')
        for _ in range(2)
    ]
    assert len(set(prompts)) == 1 and prompts[0].count('Be brief.') == 1
    noted = capsys.readouterr().err
    assert noted.count('knows no role `developer`') == (manner != 'gpt_oss')
    assert noted.count('takes no system turn') == (manner == 'gemma2')
    both = [{**told, 'role': 'system', 'content': [{'type': 'text', 'text': 'Be kind.'}]}, told, *PLAIN[:2]]
    if manner != 'gpt_oss':
        prompt = spec.tokenizer.decode(spec.encode(both).prompt.ids)
        assert 'Be kind.\n\nBe brief.' in prompt


ALTERNATING = ('gemma2', 'gemma3_text')


@pytest.mark.parametrize('manner', MANNERS)
def test_an_assistant_that_speaks_first_begins_after_the_bare_generation_prompt(manner: str, spec_in: Any) -> None:
    spec = spec_in(manner)
    conversation = [assistant('Welcome.'), *PLAIN[:2]]
    if manner in ALTERNATING:
        with pytest.raises(SampleError, match=r'refuses this conversation \(roles: assistant\)'):
            spec.encode(conversation)
        return
    example = spec.encode(conversation)
    assert learnt(spec, example) == [answer(manner, 'Welcome.'), answer(manner, 'Hello.')]
    first = example.responses[0].sequences[0]
    ids, weights = whole(example, first)
    opening = spec.tokenizer.decode(ids[: int((weights > 0).nonzero()[0])])
    bare = spec.tokenizer.decode(shown_at_inference(spec, PLAIN[:1]))
    assert opening.endswith(spec.renderer.generation_prompt) and 'Hi.' not in opening
    assert bare.startswith(opening.removesuffix(spec.renderer.generation_prompt))
    assert learnt(spec, spec.encode(conversation, 'last')) == [answer(manner, 'Hello.')]


def test_what_opens_an_answer_is_known_where_an_eos_ends_other_conversations(tiny: Tiny) -> None:
    template = (
        "{%- for message in messages -%}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}"
        "{%- endfor -%}{{ '<|assistant|>\n' if add_generation_prompt else eos_token }}"
    )
    spec = load(tiny('phi3'), chat_template=template)
    assert spec.renderer.generation_prompt == '<|assistant|>\n'
    example = spec.encode([assistant('Welcome.'), *PLAIN[:2]])
    assert learnt(spec, example) == ['Welcome.<|end|>', 'Hello.<|end|>']


def test_no_end_is_put_into_a_history_that_has_none(tiny: Tiny) -> None:
    """LLaVA's template ends answers with a space: an inserted token after the first would be seen by the second."""
    spec = load(tiny('llava'))
    example = spec.encode([user(picture(40, 40), 'Hi.'), *PLAIN[1:]])
    assert learnt(spec, example) == [' Hello.</s>', ' Goodbye.</s>']
    eos, last = spec.tokenizer.eos_token_id, example.responses[0].sequences[-1]
    ids, _ = whole(example, last)
    assert (ids == eos).sum() == 1 and int(ids[-1]) == eos
    assert example.prompt.media_counts == {'image': 1} and not any(piece.media for piece in example.responses)


def test_pictures_of_later_turns_are_with_the_answers_that_see_them(tiny: Tiny) -> None:
    spec = load(tiny('llava'))
    conversation = [
        user(picture(40, 40), 'One?'), assistant('Red.'), user(picture(40, 40, 'blue'), 'Two?'), assistant('Blue.'),
        user('Sure?'), assistant('Yes.'),
    ]  # fmt: skip
    example = spec.encode(conversation)
    assert learnt(spec, example) == [' Red.</s>', ' Blue.</s>', ' Yes.</s>']
    counts = [piece.media_counts.get('image', 0) for piece in example.responses[0].sequences]
    assert example.prompt.media_counts == {'image': 1} and counts == [0, 1, 1]
    blue = example.responses[0].earlier[1].media['pixel_values']
    assert torch.equal(blue, example.responses[0].media['pixel_values'])


def test_answers_that_no_longer_fit_are_left_out_and_the_others_stay(spec_in: Any) -> None:
    spec = spec_in('qwen3')
    turns = [[user(f'Question {number}?'), assistant(f'Answer {number}.')] for number in range(4)]
    conversation = sum(turns, [])
    full = spec.encode(conversation)
    ids, _ = whole(full, full.responses[0].sequences[1])
    short = spec_in('qwen3', max_length=len(ids))
    assert learnt(short, short.encode(conversation)) == learnt(spec, full)[:2]
    with pytest.raises(SampleError, match='the prompt alone has'):
        spec_in('qwen3', max_length=4).encode(conversation)


@pytest.mark.parametrize('manner', ['qwen3', 'deepseek_r1'])
def test_all_tokens_of_the_history_are_trained_once(manner: str, spec_in: Any) -> None:
    spec = spec_in(manner)
    example = spec.encode(PLAIN, 'all')
    assert bool((example.prompt.weights == 1).all())
    plain = spec.encode(PLAIN)
    assert example.responses[0].units >= plain.responses[0].units
    for piece, other in zip(example.responses[0].earlier, plain.responses[0].earlier, strict=True):
        assert torch.equal(piece.weights, other.weights)


@pytest.mark.parametrize('manner', ['qwen3', 'deepseek_r1', 'gpt_oss', 'llama'])
def test_pairs_that_go_on_after_the_first_differing_answer(manner: str, spec_in: Any) -> None:
    """Each of the two is learnt as it would be alone, and they share the prompt."""
    spec = spec_in(manner)
    better = PLAIN
    worse = [PLAIN[0], assistant('Go away.'), PLAIN[2], assistant('No.')]
    pair = spec.encode_group([better, worse])
    for number, conversation in enumerate((better, worse)):
        alone = spec.encode(conversation)
        assert learnt(spec, pair, number) == learnt(spec, alone)
        found = [whole(pair, piece)[0].tolist() for piece in pair.responses[number].sequences]
        assert found == [whole(alone, piece)[0].tolist() for piece in alone.responses[0].sequences]
    judged = spec.encode_group([better, worse], judged=True)
    assert not any(piece.earlier for piece in judged.responses)
    for number, conversation in enumerate((better, worse)):
        read = spec.tokenizer.decode(whole(judged, judged.responses[number])[0])
        assert read.count(conversation[1]['content'][0]['text']) == 1 and answer(manner, '')[-5:] in read


@pytest.mark.parametrize('manner', WRITES_TOOLS)
def test_pairs_of_a_call_and_a_plain_answer(manner: str, spec_in: Any) -> None:
    spec = spec_in(manner)
    pair = spec.encode_group([WITH_TOOL, [WITH_TOOL[0], assistant('I do not know.')]])
    assert learnt(spec, pair, 0) == [call(manner), answer(manner, 'It is 5.')]
    assert learnt(spec, pair, 1) == [answer(manner, 'I do not know.')]
    other = {**CALL, 'function': {'name': 'add', 'arguments': {'a': 2, 'b': 4}}}
    calls = spec.encode_group([WITH_TOOL[:2], [WITH_TOOL[0], {**WITH_TOOL[1], 'tool_calls': [other]}]])
    assert learnt(spec, calls, 0) == [call(manner)]
    assert learnt(spec, calls, 1) == [call(manner).replace('"b": 3', '"b": 4')]
    with pytest.raises(SampleError, match='nothing to prefer'):
        spec.encode_group([WITH_TOOL, WITH_TOOL])


@pytest.mark.parametrize('manner', OPENS_THOUGHT)
def test_a_thought_that_the_prompt_opens_is_what_generation_continues(manner: str, spec_in: Any) -> None:
    spec = spec_in(manner)
    assert spec.generation_prefix(PLAIN[:1]).endswith('<think>\n')
    prompt = spec.encode_prompt(PLAIN[:1])
    assert torch.equal(prompt.ids, spec.encode(PLAIN[:2]).prompt.ids)
    assert replace(prompt, ids=prompt.ids).ids.tolist() == shown_at_inference(spec, PLAIN[:1])
