"""A turn's weight multiplies the loss weights of its tokens: 0 makes it context, fractions count for less."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from align_anything.algorithms.sft import SFT
from align_anything.core.errors import SampleError
from align_anything.core.types import Conversation, Example, Scored
from align_anything.models.family import FamilySpec
from align_anything.policies.token.collator import TokenCollator
from tests.models.samples import assistant, load, user
from tests.models.test_rendering import FORGETFUL

Tiny = Callable[[str], Path]


def chat(*weights: float | None) -> Conversation:
    """A question and an answer for each weight."""
    turns: Conversation = []
    for number, weight in enumerate(weights):
        answer = assistant(f'{number} is it.')
        turns += [user(f'What is {number}?'), answer if weight is None else {**answer, 'weight': weight}]
    return turns


def weights_of(spec: FamilySpec, example: Example) -> list[tuple[float, str]]:
    """The text of each stretch of tokens of one weight, sequence by sequence."""
    runs: list[tuple[float, list[int]]] = []
    for piece in (example.prompt, *example.responses[0].sequences):
        before = len(runs)
        for token, weight in zip(piece.ids.tolist(), piece.weights.tolist(), strict=True):
            if len(runs) == before or runs[-1][0] != weight:
                runs.append((weight, []))
            runs[-1][1].append(token)
    return [(weight, spec.tokenizer.decode(tokens)) for weight, tokens in runs]


def trained(spec: FamilySpec, conversation: Conversation, train_on: str = 'all_assistant') -> list[tuple[float, str]]:
    return [run for run in weights_of(spec, spec.encode(conversation, train_on)) if run[0]]


@pytest.mark.parametrize('family', ['qwen2', 'llama', 'gemma2', 'llava'])
def test_every_turn_weighs_what_it_says_end_of_turn_included(tiny: Tiny, family: str) -> None:
    spec = load(tiny(family))
    plain = trained(spec, chat(None, None, None))
    assert [weight for weight, _ in plain] == [1, 1, 1]
    first, second, third = (text for _, text in plain)
    assert trained(spec, chat(0.25, 0, 2)) == [(0.25, first), (2, third)]
    assert trained(spec, chat(0, 0.5, None)) == [(0.5, second), (1, third)]
    assert trained(spec, chat(None, None, 0)) == [(1, first), (1, second)]
    assert trained(spec, chat(0.5, None, 0.5), 'last') == [(0.5, third)]
    assert trained(spec, [{**turn, 'weight': 0} if turn['role'] == 'user' else turn for turn in chat(None)]) == [
        (1, first)
    ]


def test_the_context_is_what_it_would_be_without_weights(tiny: Tiny) -> None:
    spec = load(tiny('qwen2'))
    plain, weighed = (spec.encode(chat(*weights)) for weights in ((None, None), (0, None)))
    ids = [torch.cat([example.prompt.ids, example.responses[0].ids]) for example in (plain, weighed)]
    assert torch.equal(*ids)


def test_an_answer_of_weight_zero_may_be_rewritten_by_the_template(tiny: Tiny) -> None:
    spec = load(tiny('qwen2'), chat_template=FORGETFUL)
    assert trained(spec, chat(0, None)) == [(1, '<think>\n\n</think>\n\n1 is it.<|im_end|>')]
    # Those that are trained are sequences of their own, each with its weight.
    assert trained(spec, chat(0.5, 2)) == [
        (weight, f'<think>\n\n</think>\n\n{number} is it.<|im_end|>') for number, weight in enumerate((0.5, 2))
    ]


def test_under_all_only_answers_have_weights_of_their_own(tiny: Tiny) -> None:
    spec = load(tiny('qwen2'))
    runs = weights_of(spec, spec.encode(chat(0, 0.5), 'all'))
    assert [run for run in runs if run[0] != 1] == [(0, '0 is it.<|im_end|>'), (0.5, '1 is it.<|im_end|>')]
    with pytest.raises(SampleError, match=r'turn 0 \(user\) has a weight of its own'):
        spec.encode([{**turn, 'weight': 0.5} for turn in chat(None)], 'all')


def test_nothing_to_train_is_said(tiny: Tiny) -> None:
    spec = load(tiny('qwen2'))
    for conversation, train_on in ((chat(0, 0), 'all_assistant'), (chat(None, 0), 'last'), (chat(0), 'all')):
        with pytest.raises(SampleError, match='no assistant turn to train has a weight above 0'):
            spec.encode(conversation, train_on)


def test_weights_of_compared_and_of_judged_answers(tiny: Tiny) -> None:
    spec = load(tiny('qwen2'))
    better, worse = chat(None), [*chat(None)[:1], assistant('No.')]
    half = [better[0], {**better[1], 'weight': 0.5}]
    group = spec.encode_group([half, worse])
    assert [response.weights.unique().tolist() for response in group.responses] == [[0.5], [1]]
    with pytest.raises(SampleError, match='no assistant turn to train'):
        spec.encode_group([[better[0], {**better[1], 'weight': 0}], worse])
    with pytest.raises(SampleError, match='scored as a whole have none'):
        spec.encode_group([half, worse], judged=True)


def test_the_loss_is_the_weighted_mean_of_a_plain_loop(tiny: Tiny) -> None:
    """Σ w·nll / Σ w over the tokens of two rows, in float64, token by token."""
    spec = load(tiny('qwen2'))
    examples = [spec.encode(chat(0.25, 0, 2)), spec.encode(chat(None))]
    batch = TokenCollator(spec, 'packed')(examples)
    logprobs = -torch.rand(len(batch.weights), dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 0.1
    algorithm = SFT()
    total = float(algorithm.terms(batch, Scored(logprobs), {})['loss'])
    count = float(algorithm.counts(batch)['loss'])
    weights = [weight for example in examples for weight in example.responses[0].weights.tolist() if weight]
    assert len(weights) == len(logprobs)
    expected = sum(-weight * value for weight, value in zip(weights, logprobs.tolist(), strict=True)) / sum(weights)
    assert total / count == pytest.approx(expected, rel=1e-6)


def test_the_weight_of_a_turn_in_the_history_keeps_no_answer_from_being_judged(tiny: Tiny) -> None:
    spec = load(tiny('qwen2'))
    judged = [
        spec.encode_group([[*chat(weight, None), user('Why?'), assistant('So.')]], 'last', start=5, judged=True)
        for weight in (None, 0.5, 0)
    ]
    for example in judged[1:]:
        assert torch.equal(example.prompt.ids, judged[0].prompt.ids)
        assert torch.equal(example.responses[0].weights, judged[0].responses[0].weights)
