"""Responses that transformers generates: ended where they end, with the log-probabilities that the trainer gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from align_anything.core.types import Example, Piece
from align_anything.engines.deepspeed_engine import DeepSpeedEngine
from align_anything.models.family import FamilySpec
from align_anything.policies.token.collator import TokenCollator
from align_anything.rollouts.base import Response, Sampling
from align_anything.rollouts.hf import HFRollouts
from tests.engines.test_deepspeed_engine import STEPS, config, optimizer, schedule
from tests.harness.pairwise import first_of
from tests.harness.ranks import run_ranks
from tests.invariants import families
from tests.models.mixed import MEDIA, media, policy_of
from tests.models.samples import load, single, user

Tiny = Callable[[str], Path]
FAMILIES = ('qwen2', 'qwen2_vl', 'qwen2_audio', 'llava', 'composed')


def prompts(spec: FamilySpec, family: str) -> list[Example]:
    """Prompts of unlike length, with and without media."""
    asked = [single()[:-1], [*single(), user('And how much is it if you add three?')]]
    asked += [[user(media(kind, 0), 'What is this?')] for kind in MEDIA.get(family, ())]
    return [Example(spec.encode_prompt(prompt), [], source=str(number)) for number, prompt in enumerate(asked)]


def completed(examples: list[Example], found: list[list[Response]]) -> list[Example]:
    return [
        replace(example, responses=[Piece(response.ids, torch.ones(len(response.ids))) for response in responses])
        for example, responses in zip(examples, found, strict=True)
    ]


@pytest.mark.parametrize('temperature', [0.0, 0.7])
@pytest.mark.parametrize('family', FAMILIES)
def test_log_probabilities_are_those_of_the_policy(family: str, temperature: float, tiny: Tiny) -> None:
    spec = load(tiny(family))
    policy = policy_of(tiny(family), spec, 'shared_prefix').eval()
    examples = prompts(spec, family)
    engine = HFRollouts(policy.model, spec, dtype=torch.float32, batch_size=3)
    engine.sync(7)
    found = engine.generate(examples, Sampling(responses=2, max_new_tokens=6, temperature=temperature))
    assert [len(responses) for responses in found] == [2] * len(examples)
    batch = TokenCollator(spec, 'shared_prefix')(completed(examples, found))
    policy.head.scale /= temperature or 1.0
    with torch.no_grad():
        expected = policy(batch).values
    logprobs = torch.cat([response.per_unit['rollout'] for responses in found for response in responses])
    torch.testing.assert_close(logprobs, expected, atol=2e-5, rtol=1e-4)
    assert {response.version for responses in found for response in responses} == {7}


@pytest.mark.parametrize('family', first_of(families.FAMILIES, 'qwen2'))
def test_prompts_of_several_responses_are_computed_once(family: str, tiny: Tiny) -> None:
    spec = load(tiny(family, **families.OPTIONS.get(family, {})))
    model = policy_of(tiny(family, **families.OPTIONS.get(family, {})), spec, spec.layouts[-1]).eval().model
    examples = prompts(spec, family)
    sampling = Sampling(responses=3, max_new_tokens=6, seeds=tuple(range(len(examples))))
    found = HFRollouts(model, spec, dtype=torch.float32, batch_size=30).generate(examples, sampling)
    apart = HFRollouts(model, spec, dtype=torch.float32, batch_size=1).generate(examples, sampling)
    for mine, theirs in zip(sum(found, []), sum(apart, []), strict=True):
        assert mine.ids.tolist() == theirs.ids.tolist()
        torch.testing.assert_close(mine.per_unit['rollout'], theirs.per_unit['rollout'], atol=2e-5, rtol=1e-4)
    inputs: list[int] = []
    model.register_forward_pre_hook(lambda _, __, given: inputs.append(given['input_ids'].numel()), with_kwargs=True)
    HFRollouts(model, spec, dtype=torch.float32, batch_size=30).generate(examples[-1:], replace(sampling, seeds=None))
    length = len(examples[-1].prompt)
    assert inputs[:2] == ([length - 1, 3] if 'shared_prefix' in spec.layouts else [3 * length, 3])


def test_nothing_follows_the_end_of_a_response(tiny: Tiny) -> None:
    spec = load(tiny('qwen2'))
    policy = policy_of(tiny('qwen2'), spec, 'padded')
    engine = HFRollouts(policy.model, spec, dtype=torch.float32, batch_size=8)
    examples = prompts(spec, 'qwen2')
    sampling = Sampling(responses=3, max_new_tokens=8, seed=3)
    whole = engine.generate(examples, sampling)
    assert not any(response.finished for responses in whole for response in responses)
    third = int(whole[0][1].ids[2])
    spec.stop_token_ids = (*spec.stop_token_ids, third)
    cut = engine.generate(examples, sampling)
    stopped = 0
    for before, after in zip(sum(whole, []), sum(cut, []), strict=True):
        ids = before.ids.tolist()
        length = ids.index(third) + 1 if third in ids else len(ids)
        assert after.ids.tolist() == ids[:length] and len(after.per_unit['rollout']) == length
        assert after.finished == (third in ids)
        stopped += after.finished
    assert 0 < stopped


def test_samples_depend_on_the_seed_alone_and_leave_the_generator_as_it_was(tiny: Tiny) -> None:
    spec = load(tiny('qwen2'))
    engine = HFRollouts(policy_of(tiny('qwen2'), spec, 'padded').model, spec, dtype=torch.float32, batch_size=8)
    examples = prompts(spec, 'qwen2')
    before = torch.get_rng_state()

    def ids(seed: int) -> list[list[int]]:
        found = engine.generate(examples, Sampling(responses=2, max_new_tokens=6, seed=seed))
        return [response.ids.tolist() for responses in found for response in responses]

    first = ids(0)
    assert torch.equal(torch.get_rng_state(), before)
    assert ids(0) == first and ids(1) != first


@pytest.mark.parametrize('family', first_of(['qwen2', 'qwen2_vl'], 'qwen2_vl'))
def test_generation_between_the_steps_of_zero_3_changes_nothing(family: str, tiny: Tiny) -> None:
    """Ranks generate to unlike prompts, and the next steps are those of a run that generates nothing."""
    expected, _ = run_ranks(trained, 2, args=(tiny(family), family, False))[0]
    state, found = run_ranks(trained, 2, args=(tiny(family), family, True))[0]
    assert found[0] != found[-1], 'the weights that generate are not the trained ones'
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name


def trained(rank: int, folder: Path, family: str, generates: bool) -> tuple[dict[str, torch.Tensor], list[list[float]]]:
    from align_anything.algorithms.sft import SFT

    spec = load(folder)
    policy = policy_of(folder, spec, 'padded')
    model = policy.model
    engine = DeepSpeedEngine(policy, config(3, 1, 1, 2), optimizer(policy), schedule)
    rollouts = HFRollouts(model, spec, dtype=torch.float32, batch_size=2, gathered=engine.gathered_weights)
    examples = prompts(spec, family)
    collate = TokenCollator(spec, 'padded', dummy_kinds=MEDIA.get(family, ()))
    row = Example(examples[rank].prompt, [Piece(torch.arange(5, 12), torch.ones(7))])
    found = []
    for _ in range(STEPS):
        if generates:
            # One rank generates more, and with media.
            mine = examples[rank : 1 + 3 * rank]
            ((response, *_), *_) = rollouts.generate(mine, Sampling(max_new_tokens=3 + rank, temperature=0.0))
            found.append(response.per_unit['rollout'][:3].tolist())
        engine.train_step([collate([row])], SFT())
    return engine.full_state_dict(model) or {}, found
