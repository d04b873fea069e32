"""Guided responses: sampled by mixed logits, scored by mixed hidden states, and these are the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from align_anything.core.types import Batch, Cost, Example
from align_anything.datasets.conversation import without_prompt_text
from align_anything.models.family import FamilySpec
from align_anything.policies.token.collator import TokenCollator
from align_anything.policies.token.policy import TokenPolicy
from align_anything.rollouts.base import Sampling
from align_anything.rollouts.experience import complete
from align_anything.rollouts.grammar import Emission
from align_anything.rollouts.hf import HFRollouts
from tests.harness.once import once
from tests.harness.ranks import run_ranks
from tests.models.mixed import policy_of
from tests.models.samples import load, picture, single, user
from tests.rollouts.emitting import emitting, load_emitting
from tests.rollouts.test_emitting import BOTH, PICTURE, joined, opener

SCALE = 3.0
LAYOUTS = ('padded', 'packed', 'shared_prefix')


@pytest.fixture(scope='module')
def folder(tiny: Callable[..., Path], shared_cache: Path) -> Path:
    return once(shared_cache, 'emitting-llama', lambda out: emitting(tiny('llama'), out))


@pytest.fixture(scope='module')
def spec(folder: Path) -> FamilySpec:
    return load_emitting(folder)


def prompts(spec: FamilySpec) -> list[Example]:
    asked = [[user('Draw a two.')], [*single(), user('And now a picture of three, and say it aloud, please.')]]
    pieces = [(spec.encode_prompt(prompt), spec.encode_prompt(without_prompt_text(prompt))) for prompt in asked]
    return [Example(prompt, [], str(at), unconditional=other) for at, (prompt, other) in enumerate(pieces)]


def opening_policy(folder: Path, spec: FamilySpec, layout: str = 'padded') -> TokenPolicy:
    """A policy that opens media often where it may write text."""
    policy = policy_of(folder, spec, layout).eval()
    opener(policy.model, spec)
    return TokenPolicy(policy.model, TokenCollator(spec, layout), dtype=torch.float32)


def generated(policy: TokenPolicy, spec: FamilySpec, emit: Emission, **how: Any) -> list[Example]:
    sampling = Sampling(**{'responses': 3, 'max_new_tokens': 60, 'emit': emit, 'guidance': SCALE, **how})
    examples = prompts(spec)
    engine = HFRollouts(policy.model, spec, dtype=torch.float32, batch_size=4)
    return complete(examples, engine.generate(examples, sampling))


def scores(policy: TokenPolicy, collate: TokenCollator, examples: list[Example], **asked: bool) -> torch.Tensor:
    return policy(collate(examples), **asked).values


@pytest.mark.parametrize('emit', [PICTURE, BOTH])
@pytest.mark.parametrize(
    'how',
    [
        {},
        {'temperature': 0.7, 'top_p': 0.9, 'top_k': 50, 'emit_temperature': {'image': 1.3}, 'emit_top_k': {'image': 3}},
    ],
)
def test_first_ratio_is_one(folder: Path, spec: FamilySpec, emit: Emission, how: dict[str, Any]) -> None:
    policy = opening_policy(folder, spec)
    examples = generated(policy, spec, emit, **how)
    sampling = Sampling(**how)
    policy.set_temperature(sampling.temperature, sampling.emit_temperature)
    collate = TokenCollator(spec, 'padded', guidance=SCALE)
    with torch.no_grad():
        found = scores(policy, collate, examples)
        plain = scores(policy, replace(collate, guidance=1.0), examples)
    rollout = joined([example.responses for example in examples])
    torch.testing.assert_close(rollout, found, atol=5e-5, rtol=1e-4)
    # Guidance matters to codes, and to nothing else.
    codes = ~collate(examples).kinds['text']
    assert torch.equal(plain[~codes], found[~codes]) and (plain[codes] - found[codes]).abs().max() > 0.1
    kinds = {part['type'] for example in examples for response in example.responses for part in response.parts}
    assert kinds == ({'image'} if emit is PICTURE else {'image', 'audio', 'text'})


def by_plain_loop(policy: TokenPolicy, spec: FamilySpec, examples: list[Example]) -> torch.Tensor:
    """Each response behind each of its two prompts alone; logits mixed in float64, over the ids that could stand."""
    model, found = policy.model, []
    for example in examples:
        for response in example.responses:
            logits = []
            for prompt in (example.prompt, example.unconditional):
                ids = torch.cat([prompt.ids, response.ids])[None]
                logits.append(model(input_ids=ids).logits[0, len(prompt) - 1 : -1].double())
            conditional, unconditional = logits
            sets = spec.codes.sets(conditional.shape[-1])
            numbers = spec.codes.set_of(response.ids)
            for at in response.weights.nonzero().flatten().tolist():
                row = conditional[at]
                if numbers[at]:
                    row = SCALE * conditional[at] + (1 - SCALE) * unconditional[at]
                allowed = torch.cat([torch.arange(*span) for span in sets[numbers[at]]])
                place = (allowed == response.ids[at]).nonzero().item()
                found.append(row[allowed].log_softmax(0)[place])
    return torch.stack(found)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_scores_and_gradients_are_those_of_mixed_logits(folder: Path, spec: FamilySpec, layout: str) -> None:
    examples = generated(opening_policy(folder, spec), spec, BOTH)
    policy = opening_policy(folder, spec, layout)
    batch = TokenCollator(spec, layout, guidance=SCALE)(examples)
    plain = opening_policy(folder, spec)
    found, expected = policy(batch).values, by_plain_loop(plain, spec, examples)
    torch.testing.assert_close(found.double(), expected, atol=5e-5, rtol=1e-4)
    upstream = torch.randn(len(found), generator=torch.Generator().manual_seed(0))
    (found * upstream).sum().backward()
    (expected * upstream).sum().backward()
    named = dict(plain.model.named_parameters())
    for name, parameter in policy.model.named_parameters():
        torch.testing.assert_close(parameter.grad, named[name].grad, atol=2e-4, rtol=2e-3, msg=name)


def in_ranks(rank: int, folder: Path, spec: FamilySpec, examples: list[Example], layout: str, ranks: int) -> Any:
    """Scores of a row that so many ranks share, and gradients."""
    model = opening_policy(folder, spec, layout).model
    collate = TokenCollator(spec, layout, guidance=SCALE, ranks_per_row=ranks)
    policy = TokenPolicy(model, collate, dtype=torch.float32)
    found = policy(collate(examples)).values
    (found * torch.linspace(-1, 1, len(found))).sum().backward()
    return found.detach(), {name: own.grad for name, own in model.named_parameters()}


@pytest.mark.extended
@pytest.mark.parametrize('layout', LAYOUTS[1:])
def test_ranks_share_rows(folder: Path, spec: FamilySpec, layout: str) -> None:
    examples = generated(opening_policy(folder, spec), spec, BOTH)
    expected, gradients = in_ranks(0, folder, spec, examples, layout, 1)
    found = run_ranks(in_ranks, 2, args=(folder, spec, examples, layout, 2))
    for own, _ in found:
        torch.testing.assert_close(own, expected, atol=5e-5, rtol=1e-4)
    for name, wanted in gradients.items():
        summed = sum(own[name] for _, own in found)
        torch.testing.assert_close(summed, wanted, atol=2e-4, rtol=2e-3, msg=name)


def test_a_response_counts_for_both_of_its_prompts(spec: FamilySpec, folder: Path) -> None:
    """In what a micro-batch takes; what it trains on, and where responses end, stays what it was."""
    examples = generated(opening_policy(folder, spec), spec, PICTURE)
    for layout in LAYOUTS:
        collate = TokenCollator(spec, layout, guidance=SCALE)
        guided, plain = collate(examples), replace(collate, guidance=1.0)(examples)
        assert guided.stats['tokens'] == collate.size(examples) > 1.5 * plain.stats['tokens']
        for name in ('segments', 'weights'):
            assert torch.equal(getattr(guided, name), getattr(plain, name))
        assert guided.stats['distinct_tokens'] == plain.stats['distinct_tokens'] and guided.num_responses == 6
        assert torch.equal(ending_tokens(guided), ending_tokens(plain))
        assert plain.inputs.unconditional is None
    one = examples[0]
    tokens = len(one.prompt) + len(one.unconditional)
    assert collate.cost(replace(one, responses=[])) == Cost(tokens, 1, work=tokens)
    # Ranks even out what both passes compute, whatever the layout shares.
    assert collate.cost(one).work == tokens + 2 * sum(map(len, one.responses))
    assert collate.cost(replace(one, unconditional=None)).work == len(one)


def ending_tokens(batch: Batch) -> torch.Tensor:
    return batch.inputs.arguments['input_ids'].flatten()[batch.inputs.ends]


@pytest.mark.parametrize('layout', LAYOUTS)
def test_rows_without_another_prompt_are_scored_as_they_are(folder: Path, spec: FamilySpec, layout: str) -> None:
    """Supervised rows beside generated ones, and what fills an empty micro-batch."""
    policy = opening_policy(folder, spec, layout)
    examples = [
        replace(example, unconditional=None)
        for example in generated(policy_of(folder, spec, 'padded').eval(), spec, PICTURE)
    ]
    collate = TokenCollator(spec, layout, guidance=SCALE)
    with torch.no_grad():
        assert torch.equal(scores(policy, collate, examples), scores(policy, replace(collate, guidance=1.0), examples))
    batch = collate([])
    assert batch.inputs.unconditional is not None
    policy(batch).values.sum().backward()


def test_a_greedy_response_follows_the_mixed_logits(folder: Path, spec: FamilySpec) -> None:
    policy = opening_policy(folder, spec)
    (example, _) = generated(policy, spec, PICTURE, responses=1, temperature=0.0)
    other = replace(example, responses=[])
    (plain, _) = generated(policy, spec, PICTURE, responses=1, temperature=0.0, guidance=1.0)
    (response,), ids = example.responses, []
    assert response.ids.tolist() != plain.responses[0].ids.tolist()
    for at, token in enumerate(response.ids.tolist()):
        number = int(spec.codes.set_of(response.ids[at]))
        if number:
            rows = [
                policy.model(input_ids=torch.cat([prompt.ids, torch.tensor(ids).long()])[None]).logits[0, -1]
                for prompt in (other.prompt, other.unconditional)
            ]
            mixed = SCALE * rows[0] + (1 - SCALE) * rows[1]
            ((start, stop),) = spec.codes.sets(len(mixed))[number]
            assert int(mixed[start:stop].argmax()) + start == token
        ids.append(token)


def test_only_what_users_say_is_left_empty() -> None:
    picture = {'type': 'image', 'image': object()}
    conversation = [
        {'role': 'system', 'content': [{'type': 'text', 'text': 'You draw.'}]},
        {'role': 'user', 'content': [{'type': 'text', 'text': 'A'}, picture, {'type': 'text', 'text': 'red one'}]},
        {'role': 'assistant', 'content': [{'type': 'text', 'text': 'Here.'}], 'weight': 0.5},
    ]
    emptied = without_prompt_text(conversation)
    assert [emptied[0], emptied[2]] == [conversation[0], conversation[2]]
    assert emptied[1]['content'] == [{'type': 'text', 'text': ''}, picture, {'type': 'text', 'text': ''}]
    assert conversation[1]['content'][0]['text'] == 'A'


@pytest.mark.parametrize('layout', ['padded', 'shared_prefix'])
@pytest.mark.parametrize('family', ['janus', 'emu3', 'chameleon'])
def test_families_are_guided_too(family: str, layout: str, tiny: Callable[..., Path]) -> None:
    """Janus by a head of its own, with layers in front of the last one, and with a picture in a prompt."""
    spec = load(tiny(family))
    spec.codes = replace(spec.codes, restricted=True, begins=True)
    grid = spec.codes.kinds['image'].size or (4, 4)
    policy = policy_of(tiny(family), spec, layout).eval()
    asked = [[user('Draw a two.')], [user(picture(40, 30, 'red'), 'Draw this once more, in red.')]]
    pieces = [(spec.encode_prompt(prompt), spec.encode_prompt(without_prompt_text(prompt))) for prompt in asked]
    examples = [Example(prompt, [], str(at), unconditional=other) for at, (prompt, other) in enumerate(pieces)]
    engine = HFRollouts(policy_of(tiny(family), spec, 'padded').model, spec, dtype=torch.float32, batch_size=8)
    emit = Emission({'image': grid}, 'image')
    sampling = Sampling(responses=2, max_new_tokens=64, emit=emit, guidance=SCALE)
    examples = complete(examples, engine.generate(examples, sampling))
    assert all(response.finished for example in examples for response in example.responses)
    collate = TokenCollator(spec, layout, kinds=('image',), guidance=SCALE)
    with torch.no_grad():
        found = scores(policy, collate, examples)
        plain = scores(policy, replace(collate, guidance=1.0), examples)
    torch.testing.assert_close(joined([example.responses for example in examples]), found, atol=5e-5, rtol=1e-4)
    assert (found - plain).abs().max() > 1e-3
