"""Policies that denoise chunks: their scores are the model's own loss, and hang on nothing beside what they are of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from align_anything.core.errors import ModelError
from align_anything.core.types import Example
from align_anything.models.acting.pieces import FRAMES, VALUES
from align_anything.policies.acting.flow.collator import FlowCollator, FlowInputs
from align_anything.policies.acting.flow.policy import FlowPolicy
from tests.policies.chunks import episode, spec_and_model
from tests.policies.test_flops import MORE

Tiny = Callable[..., Path]
LONG = 'go to the very red square on the left, and stop there'


@pytest.fixture(scope='module')
def policy(tiny: Tiny) -> FlowPolicy:
    spec, model = spec_and_model(tiny('pi0'))
    return FlowPolicy(model, FlowCollator(spec, seed=3), dtype=torch.float64)


def example(
    policy: FlowPolicy, *steps: int, seed: int = 0, source: str = 'row', text: str = 'go to the red'
) -> Example:
    made = policy.collate.spec.encode(episode(*steps, seed=seed, text=text))
    return replace(made, source=source)


def test_operations_are_those_that_are_measured(policy: FlowPolicy) -> None:
    made = [example(policy, 1, seed=0), example(policy, 1, 1, seed=1)]
    policy = FlowPolicy(policy.model, policy.collate, dtype=torch.float64)
    batch = policy.collate(made[1:])
    assert policy.flops(batch) == {}
    policy(policy.collate(made))
    found = policy.flops(batch)
    with FlopCounterMode(display=False, custom_mapping=MORE) as counter:
        policy(batch)
    assert sum(own.forward for own in found.values()) == pytest.approx(counter.get_total_flops(), rel=1e-9)
    assert found['language_model'].forward > found['action_expert'].forward > 0
    assert found['action_expert'].backward > found['action_expert'].forward


def own_loss(policy: FlowPolicy, inputs: FlowInputs, clean: torch.Tensor) -> torch.Tensor:
    """What the class of transformers says of the same draws, `(rows, chunk, numbers)`."""
    seen, at = inputs.seen, inputs.step_of
    policy.model.config.loss_reduction = 'none'
    return policy.model(
        state=seen.state.double()[at],
        noise=(inputs.target + clean).double(),
        timestep=inputs.level.double(),
        actions=clean.double(),
        input_ids=seen.ids[at],
        attention_mask=seen.mask[at],
        pixel_values=seen.frames.double()[at],
        pixel_attention_mask=seen.cameras[at],
    ).loss


def test_scores_of_draws_are_the_loss_of_the_class(policy: FlowPolicy) -> None:
    row = example(policy, 4, 2)
    batch = policy.collate([row])
    with torch.no_grad():
        values = policy(batch).values
        theirs = own_loss(policy, batch.inputs, row.responses[0].media[VALUES])
    # The second chunk ends after two steps; numbers that no action has are no part of the loss either.
    wanted = torch.stack([theirs[0, :, :2].mean(), theirs[1, :2, :2].mean()])
    assert torch.allclose(-values, wanted, atol=1e-6)
    levels = batch.inputs.level
    assert bool((levels > 0.001).all()) and bool((levels < 1).all())


def test_levels_are_of_the_beta_distribution_of_the_model(policy: FlowPolicy) -> None:
    rows = [example(policy, 4, source=str(number)) for number in range(2)]
    spec = policy.collate.spec
    levels = torch.stack([policy.collate._draw(rows[0], 0, number)[0] for number in range(3000)])
    # Beta(1.5, 1): P(t < x) = x^1.5.
    shares = (levels - spec.config.time_sampling_offset) / spec.config.time_sampling_scale
    for bound in (0.25, 0.5, 0.75):
        assert float((shares < bound).float().mean()) == pytest.approx(bound**1.5, abs=0.03)


def test_draws_hang_on_seed_epoch_row_turn_and_number_alone(policy: FlowPolicy) -> None:
    collate = policy.collate
    chosen, rejected = example(policy, 4, 4).responses[0], example(policy, 4, 4, 4, seed=0).responses[0]
    pair = replace(example(policy, 4, 4), responses=[chosen, rejected])
    inputs = collate([example(policy, 4, source='other'), pair]).inputs
    (first, second), (third, fourth, fifth) = inputs.level[1:3], inputs.level[3:]
    assert first == third and second == fourth and first != second != fifth
    assert torch.equal(collate([pair]).inputs.sample, inputs.sample[1:])
    later = collate([replace(pair, epoch=1)]).inputs
    other = replace(collate, seed=4)([pair]).inputs
    assert not set(later.level.tolist()) & set(inputs.level[1:].tolist())
    assert not set(other.level.tolist()) & set(inputs.level[1:].tolist())
    # Wherever its file lies.
    here, there = (collate([replace(pair, source=f'{at}/rows.jsonl:1')]).inputs for at in ('/data', 'other/place'))
    assert torch.equal(here.level, there.level)
    # Evaluations are at levels of their own, whatever the seed.
    evaluated = [replace(collate, seed=seed, grid=4)([pair]) for seed in (1, 2)]
    assert torch.equal(evaluated[0].inputs.sample, evaluated[1].inputs.sample)
    assert len(evaluated[0].weights) == 20 and float(evaluated[0].weights.sum()) == pytest.approx(5.0)


def test_what_responses_share_is_read_once(policy: FlowPolicy) -> None:
    one, other = example(policy, 4, 4).responses[0], example(policy, 2, seed=0).responses[0]
    group = replace(example(policy, 4, 4), responses=[one, other, one])
    batch = policy.collate([group])
    # The first step of all, and the second one of two of them.
    assert batch.stats['steps'] == 3 and len(batch.weights) == 5
    with torch.no_grad():
        together = policy(batch).values
        alone = [policy(policy.collate([replace(group, responses=[own])])).values for own in (one, other, one)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-9)


def test_scores_hang_on_no_neighbour_no_padding_and_no_other_turn(policy: FlowPolicy) -> None:
    rows = [
        example(policy, 4, 1, source='a', text=LONG),
        example(policy, 2, seed=5, source='b', text='stop'),
    ]
    with torch.no_grad():
        together = policy(policy.collate(rows)).values
        alone = torch.cat([policy(policy.collate([row])).values for row in rows])
        first = policy(policy.collate([example(policy, 4, source='a', text=LONG)])).values
    assert torch.allclose(together, alone, atol=1e-9)
    # There is no history, and no look ahead.
    assert torch.allclose(together[:1], first, atol=1e-9)


def test_what_fills_a_chunk_up_moves_no_score(policy: FlowPolicy) -> None:
    row = example(policy, 2)
    batch = policy.collate([row])
    with torch.no_grad():
        value = policy(batch).values
        (counted,) = batch.inputs.counted
        batch.inputs.target[0, ~counted] += 7.0
        assert torch.equal(policy(batch).values, value)
        batch.inputs.target[0, 0, 0] += 7.0
        assert not torch.equal(policy(batch).values, value)


def test_a_batch_of_nothing_has_a_gradient_and_no_units(policy: FlowPolicy) -> None:
    scored = policy(policy.collate([]), prediction=True)
    assert scored.values.shape == (0,) and scored.values.requires_grad and len(scored.prediction) == 0


def test_the_check_finds_a_model_that_reads_steps_otherwise(
    policy: FlowPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy.check(policy, torch.device('cpu'))
    plain = policy.model.model.embed_prefix

    def spoiled(ids: torch.Tensor, frames: torch.Tensor, cameras: torch.Tensor) -> torch.Tensor:
        found = plain(ids, frames, cameras)
        # As a kernel does that looks at its neighbours.
        return found + 0.1 * found.mean(0, keepdim=True)

    monkeypatch.setattr(policy.model.model, 'embed_prefix', spoiled)
    with pytest.raises(ModelError, match='fails the check before training'):
        policy.check(policy, torch.device('cpu'))


def test_pictures_decide_what_is_predicted(policy: FlowPolicy) -> None:
    row = example(policy, 4)
    blind = replace(row, prompt=replace(row.prompt, media={**row.prompt.media, FRAMES: 0 * row.prompt.media[FRAMES]}))
    with torch.no_grad():
        assert not torch.allclose(policy(policy.collate([row])).values, policy(policy.collate([blind])).values)
