"""Chunks that are generated: without noise those of the model itself, with noise scored as they were sampled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from align_anything.core.types import COMPANION, Example
from align_anything.models.acting.pieces import VALUES
from align_anything.policies.acting.flow.collator import FlowCollator
from align_anything.policies.acting.flow.policy import FlowPolicy
from align_anything.policies.denoising.collator import SAMPLE
from align_anything.policies.denoising.transitions import Kernel
from align_anything.rollouts.denoising import Window
from align_anything.rollouts.flow import FlowRollouts, FlowSampling
from align_anything.rollouts.restricted import seed_of
from tests.policies.chunks import episode, spec_and_model

Tiny = Callable[..., Path]
KERNEL = Kernel('flow_sde', 0.5)
ALL = FlowSampling(responses=3, steps=5, kernel=KERNEL, units='steps')
ONE = replace(ALL, window=Window(size=1))


@pytest.fixture(scope='module')
def rollouts(tiny: Tiny) -> FlowRollouts:
    spec, model = spec_and_model(tiny('pi0'), torch.float32)
    return FlowRollouts(model, spec, dtype=torch.float32, device=torch.device('cpu'), batch_size=4)


def prompts(rollouts: FlowRollouts) -> list[Example]:
    texts = ('go to the red square', 'stop')
    return [
        Example(rollouts.spec.encode_prompt(episode(4, seed=number, text=text)[:1]), [], source=text)
        for number, text in enumerate(texts)
    ]


def test_without_noise_they_are_those_of_the_model_itself(rollouts: FlowRollouts) -> None:
    examples = prompts(rollouts)
    for steps in (5, 10):
        found = rollouts.generate(examples, FlowSampling(responses=3, steps=steps, seed=7))
        for number, example in enumerate(examples):
            seen = FlowCollator(rollouts.spec).see([example.prompt] * 3)
            rows = [torch.Generator().manual_seed(seed_of(7, 3 * number + which)) for which in range(3)]
            chunks = rollouts.acting.sample_actions(
                state=seen.state,
                input_ids=seen.ids,
                pixel_values=seen.frames,
                noise=torch.stack([torch.randn(4, 8, generator=own) for own in rows]),
                attention_mask=seen.mask,
                pixel_attention_mask=seen.cameras,
                num_steps=steps,
            )
            ours = torch.cat([response.media[VALUES] for response in found[number]])
            assert torch.allclose(ours, chunks, rtol=0, atol=1e-6)
            told = found[number][0].parts[0]['action'].values
            assert torch.allclose(told, rollouts.spec.space.restored(chunks[0, :, :2].double()), atol=1e-6)
    # In one batch of its size it is the same arithmetic, to the last bit.
    (alone,) = rollouts.generate(examples[:1], FlowSampling(responses=3, steps=10, seed=7))
    seen = FlowCollator(rollouts.spec).see([examples[0].prompt] * 3)
    noise = torch.stack(
        [torch.randn(4, 8, generator=torch.Generator().manual_seed(seed_of(7, row))) for row in range(3)]
    )
    chunks = rollouts.acting.sample_actions(
        seen.state, seen.ids, seen.frames, noise, seen.mask, seen.cameras, num_steps=10
    )
    assert torch.equal(torch.cat([response.media[VALUES] for response in alone]), chunks)


@pytest.mark.parametrize('sampling', [ALL, ONE], ids=['all steps', 'one step'])
def test_what_is_scored_is_what_was_sampled(rollouts: FlowRollouts, sampling: FlowSampling) -> None:
    examples = prompts(rollouts)
    found = rollouts.generate(examples, sampling)
    policy = FlowPolicy(rollouts.acting, FlowCollator(rollouts.spec, kernel=KERNEL), dtype=torch.float32)
    batch = policy.collate([replace(own, responses=responses) for own, responses in zip(examples, found, strict=True)])
    with torch.no_grad():
        scored = policy(batch, entropy=True, prediction=True)
    assert len(scored.values) == 6 * (4 if sampling is ALL else 1)
    assert torch.allclose(scored.values, batch.per_unit['rollout'], atol=1e-5)
    assert float(batch.per_unit['rollout'].std()) > 0.01
    # Every response of a step was read behind one pass over it.
    assert batch.stats['steps'] == 2
    # Against its own velocities nothing has moved; against others it has.
    for responses in found:
        for response in responses:
            response.media[f'{COMPANION}reference'] = torch.zeros(response.media[SAMPLE].shape)
    moved = policy(policy.collate([replace(own, responses=made) for own, made in zip(examples, found, strict=True)]))
    assert bool((moved.divergence > 0).all())


def test_one_step_of_a_chunk_samples_and_it_is_another_one_each_time(rollouts: FlowRollouts) -> None:
    found = rollouts.generate(prompts(rollouts)[:1], replace(ONE, responses=24))
    numbers = {response.ids.item() for responses in found for response in responses}
    # Of five the last one never does.
    assert numbers == {0, 1, 2, 3}


def test_chunks_hang_on_their_seeds_and_on_nothing_beside_them(rollouts: FlowRollouts) -> None:
    examples = prompts(rollouts)
    seeded = replace(ONE, seeds=(5, 6))
    together = rollouts.generate(examples, seeded)
    alone = rollouts.generate(examples[1:], replace(seeded, seeds=(6,)))
    for one, other in zip(together[1], alone[0], strict=True):
        assert torch.equal(one.ids, other.ids)
        assert torch.allclose(one.media[VALUES], other.media[VALUES], atol=1e-5)
    assert not torch.allclose(together[1][0].media[VALUES], together[1][1].media[VALUES])


def test_the_last_of_several_steps_is_what_is_acted_on(rollouts: FlowRollouts) -> None:
    turns = episode(4, 4)
    whole = Example(rollouts.spec.encode_prompt(turns[:3]), [], source='row')
    # There is no history: the goal alone is left of the beginning.
    text = turns[0]['content'][0]
    last = [{**turns[2], 'content': [text, *turns[2]['content']]}]
    single = Example(rollouts.spec.encode_prompt(last), [], source='row')
    plain = FlowSampling(steps=4, seed=1)
    (one,), (other,) = (rollouts.generate([own], plain)[0] for own in (whole, single))
    assert torch.equal(one.media[VALUES], other.media[VALUES])
