"""What stands between turns of an episode is what the chat template writes there, and nothing before it changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from align_anything.core.errors import ModelError
from align_anything.models.chat_form import message_of
from align_anything.models.pretrained_model import load_spec
from align_anything.models.turns import TurnEncoder, with_tools, with_turns
from tests.models.published import CALL, MANNERS, TOOL, WRITES_TOOLS
from tests.models.samples import assistant, load, picture, user

ONE_SEQUENCE = ('llama', 'qwen2', 'gemma3_text', 'mistral', 'qwen2_5_vl')
Tiny = Callable[..., Path]


@pytest.mark.parametrize('family', ONE_SEQUENCE)
def test_it_is_what_supervised_training_has_between_two_answers(family: str, tiny: Tiny) -> None:
    spec = load(tiny(family))
    encoder = TurnEncoder(spec)
    encoder.check([])
    shown = [user(*([picture(60, 40)] if spec.reads else []), 'And now?')]
    asked, first, second = [user('What is it?')], assistant('It is one.'), assistant('Two.')
    (runs,) = spec.render([*asked, first, *shown, second])
    supervised = spec.encode([*asked, first, *shown, second])
    said, between = (
        [spec.encode_run(run) for run in runs[1:3]],
        encoder.piece(encoder.between(shown), [spec.stop_token_ids[0]]),
    )
    start = sum(map(len, said))
    assert not between.weights.any() and between.media_counts == ({'image': 1} if spec.reads else {})
    assert supervised.responses[0].ids[start : start + len(between)].tolist() == between.ids.tolist()
    if family != 'gemma3_text':
        # A turn that a stop string ended gets its end.
        ended = encoder.piece(encoder.between(shown), [5])
        assert ended.ids[0] == spec.renderer.end_of_turn_id and torch.equal(ended.ids[1:], between.ids)


@pytest.mark.parametrize('manner', sorted({*WRITES_TOOLS} - {'gpt_oss', 'qwen3_thinking'}))
def test_results_of_tools_stand_as_the_template_has_them(manner: str, tiny: Tiny) -> None:
    spec = load_spec(str(tiny(MANNERS[manner], template=manner)), model_max_length=None)
    encoder = TurnEncoder(spec)
    encoder.check([TOOL])
    asked = with_tools([user('What is 2 + 3?')], [TOOL])
    called = {**message_of('assistant', ''), 'tool_calls': [CALL]}
    results = [message_of('tool', '5', name='add')]
    text = encoder.between(results, [TOOL]).text
    full = spec.render_prompt([*asked, called, *results]).text
    assert full.endswith(text) or manner == 'mistral'  # whose results have the ids of their calls
    history = spec.renderer.text([*asked, called])
    assert '5' in text and len(text) <= len(full) - len(spec.render_prompt(asked).text)
    end = spec.tokenizer.convert_ids_to_tokens(spec.renderer.call_end_id or spec.renderer.end_of_turn_id)
    assert history.rpartition(end)[2].strip() == '' and not text.startswith(end)


def test_thoughts_that_the_template_would_take_off_are_kept(tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    spec = load_spec(str(tiny('qwen3', template='qwen3')), model_max_length=None)
    encoder = TurnEncoder(spec)
    encoder.check([TOOL])
    assert 'keep them as they were sampled' in caplog.text
    assert encoder.between([user('And now?')]).text == (
        '\n<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n'
    )


@pytest.mark.parametrize(
    ('manner', 'tools', 'reason'),
    [('gpt_oss', [], 'does not end an answer with'), ('gemma2', [TOOL], 'does not write tools')],
)
def test_a_template_that_cannot_is_refused(
    manner: str, tools: list[dict[str, object]], reason: str, tiny: Tiny
) -> None:
    spec = load_spec(str(tiny(MANNERS[manner], template=manner)), model_max_length=None)
    with pytest.raises(ModelError, match=reason):
        TurnEncoder(spec).check(tools)


@pytest.mark.parametrize(
    ('family', 'between', 'told'),
    [
        ('llava', ' USER: And now? ASSISTANT:', True),
        ('emu3', ' USER: And now? ASSISTANT:', True),
        ('janus', '<|User|>: And now?\n\n<|Assistant|>:', False),
    ],
)
def test_where_the_template_ends_no_answer_the_sampled_end_does(
    family: str, between: str, told: bool, tiny: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    spec = load(tiny(family))
    encoder = TurnEncoder(spec)
    encoder.check([])
    assert ('writes no token that ends an answer' in caplog.text) == told
    run = encoder.between([user('And now?')])
    assert run.text == between
    end = spec.renderer.end_of_turn_id
    assert encoder.piece(run, [5]).ids.tolist() == [end, *encoder.piece(run, [end]).ids.tolist()]


def test_a_template_with_another_end_in_the_history_is_refused(tiny: Tiny) -> None:
    with pytest.raises(ModelError, match='does not end an answer with'):
        TurnEncoder(load(tiny('paligemma'))).check([])


def test_two_user_turns_in_a_row_are_one() -> None:
    together = with_turns([user('One.')], [user('Two.'), assistant('x')])
    assert [message['role'] for message in together] == ['user', 'assistant']
    assert [part['text'] for part in together[0]['content']] == ['One.', '\n\n', 'Two.']
    assert with_turns([], [user('Two.')]) == [user('Two.')] and with_tools([], [TOOL]) == []
