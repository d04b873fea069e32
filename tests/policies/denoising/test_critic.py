"""A critic of denoising steps: a value of the state alone, in any cut and engine, that learns what comes of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from align_anything.algorithms.base import known_algorithms
from align_anything.algorithms.critic import Critic
from align_anything.algorithms.online import Experience
from align_anything.core.errors import ModelError
from align_anything.core.types import Example
from align_anything.engines.deepspeed_config import build_config
from align_anything.engines.deepspeed_engine import DeepSpeedEngine
from align_anything.models.diffusion.score import DenoiserForScore
from align_anything.policies.denoising.collator import DenoisingCollator
from align_anything.policies.denoising.critic import DenoisingCritic
from align_anything.policies.denoising.prediction import Guidance
from align_anything.policies.denoising.transitions import Kernel
from align_anything.rollouts.experience import joined, record, spread
from tests.harness.local_engine import LocalEngine
from tests.harness.ranks import run_ranks
from tests.policies.denoising.test_policy import CPU, CUTS, generated, infer, same, step
from tests.policies.denoising.toy import SHAPE, ToyDenoiser, ToySpec, policy_of

ROLE = 'reward_critic'
LEARNS = Critic(role=ROLE, clip_range_value=None)


def critic_of(dtype: torch.dtype = torch.float64, seed: int = 0) -> DenoisingCritic:
    model = DenoiserForScore(ToyDenoiser(seed, dtype), SHAPE[0]).to(dtype)
    collate = DenoisingCollator(ToySpec('flow'), kernel=Kernel('flow_sde', 0.7), guidance=Guidance(embedded=3.5))
    return DenoisingCritic(model, collate, dtype=dtype)


def experienced(critic: DenoisingCritic, dtype: torch.dtype = torch.float64) -> list[Example]:
    """Responses with the values of their steps, and returns that hang on what the sample of a step is."""
    settings = {'kernel': Kernel('flow_sde', 0.7), 'guidance': Guidance(2.5)}
    examples = generated(policy_of('flow', 0, dtype, **settings))
    record(f'values/{ROLE}', infer(critic), critic.collate, [examples[:1], [], examples[1:]], CPU)
    for response in (own for item in examples for own in item.responses):
        response.per_unit[f'returns/{ROLE}'] = 2 * response.media['sample'][:, 0].flatten(1).mean(1).float() + 1
    return examples


def test_a_value_is_a_head_on_the_mean_of_what_the_denoiser_predicts() -> None:
    critic = critic_of()
    batch = critic.collate(experienced(critic))
    inputs = batch.inputs
    conditions = {name: value[inputs.examples] for name, value in inputs.conditions.items()}
    predicted = critic.model.denoiser(inputs.sample.double(), inputs.level, guidance=3.5, **conditions)
    wanted = predicted.mean((2, 3)) @ critic.model.score.weight[0]
    torch.testing.assert_close(critic(batch).values, wanted, rtol=1e-12, atol=1e-12)
    assert len(wanted) == len(batch.weights) > 8


def test_a_value_is_of_the_state_and_of_nothing_that_follows() -> None:
    critic = critic_of()
    examples = experienced(critic)
    before = critic(critic.collate(examples)).values
    alone = [critic(critic.collate([replace(item, responses=[own])])) for item in examples for own in item.responses]
    torch.testing.assert_close(torch.cat([scored.values for scored in alone]), before, rtol=1e-9, atol=1e-12)
    for name, matters in (('next', False), ('sample', True), ('level', True)):
        moved = experienced(critic)
        moved[0].responses[0].media[name] = 0.9 * moved[0].responses[0].media[name]
        changed = (critic(critic.collate(moved)).values - before).abs() > 1e-9
        steps = moved[0].responses[0].units
        assert bool(changed[:steps].all()) is matters and not changed[steps:].any(), name


def test_every_cut_gives_the_same_gradients() -> None:
    examples = experienced(critic_of())
    steps = [step(critic_of(), LEARNS, examples, cut) for cut in CUTS]
    for cut, (result, gradients) in zip(CUTS, steps, strict=True):
        assert result.loss == pytest.approx(steps[0][0].loss, rel=1e-9), cut
        same(gradients, steps[0][1], cut)


def test_an_empty_micro_batch_has_a_gradient_that_trains_nothing() -> None:
    critic = critic_of()
    scored = critic(critic.collate([]))
    assert len(scored.values) == 0 and critic.model.denoiser.calls == [1]
    scored.values.sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in critic.parameters())


def test_the_check_looks_at_values_beside_each_other() -> None:
    critic = critic_of()
    critic.check(critic, CPU)
    forward = critic.model.denoiser.forward
    critic.model.denoiser.forward = lambda sample, *args, **more: forward(sample - sample.mean(0), *args, **more)
    with pytest.raises(ModelError, match='stand alone'):
        critic.check(critic, CPU)


def test_what_it_has_not_is_refused() -> None:
    critic = critic_of()
    for asked in ('entropy', 'bootstrap', 'routing', 'further'):
        with pytest.raises(ModelError, match='has values and nothing else'):
            critic(critic.collate([]), **{asked: True})
    with pytest.raises(ModelError, match='no temperature'):
        critic.set_temperature(1.0)


def under_deepspeed(rank: int, stage: int) -> tuple[float, dict[str, Tensor]]:
    run = {'micro_batch': 2, 'accumulation': 2, 'world_size': 1, 'precision': 'fp32', 'max_grad_norm': 0.0}
    config = build_config({'zero_optimization': {'stage': stage}}, optimizer='adamw_torch', **run)
    critic = critic_of(torch.float32)
    engine = DeepSpeedEngine(
        critic, config, torch.optim.AdamW(critic.parameters(), lr=1e-3, eps=1e-3, weight_decay=0.0),
        lambda base: torch.optim.lr_scheduler.ConstantLR(base, factor=1.0),
    )  # fmt: skip
    critic.check(engine.engine, engine.device)
    examples = experienced(critic_of(torch.float32), torch.float32)
    batches = [critic.collate([examples[number] for number in part]) for part in CUTS[2]]
    result = engine.train_step(batches, LEARNS)
    return result.loss, engine.full_state_dict(engine.policy.model)


@pytest.mark.parametrize('stage', [0, 2, pytest.param(3, marks=pytest.mark.extended)])
def test_deepspeed_steps_as_one_process(stage: int) -> None:
    [(loss, state)] = run_ranks(under_deepspeed, 1, args=(stage,))
    critic = critic_of(torch.float32)
    engine = LocalEngine(critic, torch.optim.AdamW(critic.parameters(), lr=1e-3, eps=1e-3, weight_decay=0.0))
    examples = experienced(critic_of(torch.float32), torch.float32)
    result = engine.train_step([critic.collate(examples)], LEARNS)
    assert loss == pytest.approx(result.loss, rel=1e-4)
    assert {*state} == {*critic.model.state_dict()}
    for key, value in critic.model.state_dict().items():
        torch.testing.assert_close(state[key], value, rtol=1e-4, atol=2e-5, msg=key)


def test_a_critic_learns_what_comes_of_a_state() -> None:
    """What a step earns can be read off its sample: the explained variance of the values goes from none to most."""
    critic = critic_of()
    examples = experienced(critic)
    engine = LocalEngine(critic, torch.optim.Adam(critic.parameters(), lr=1e-2))

    def unexplained() -> float:
        with torch.no_grad():
            values = critic(critic.collate(examples)).values
        returns = joined(examples, f'returns/{ROLE}').to(values)
        return float((returns - values).var() / returns.var())

    before = unexplained()
    for _ in range(150):
        engine.train_step([critic.collate(examples)], LEARNS)
    assert before > 0.5 and unexplained() < 0.1


def test_advantages_of_steps_are_what_the_values_did_not_expect() -> None:
    """GAE over the steps of each medium, in float64, whose reward stands at its last step."""
    critic = critic_of()
    examples = experienced(critic)
    lengths = torch.tensor([own.units for item in examples for own in item.responses])
    values, scores = joined(examples, f'values/{ROLE}').double(), torch.arange(8.0, dtype=torch.float64) - 3
    experience = Experience(
        scores=scores,
        groups=torch.arange(4).repeat_interleave(2),
        segments=torch.arange(8).repeat_interleave(lengths),
        finished=torch.ones(8, dtype=torch.bool),
        logprobs=torch.zeros(len(values)),
        values={ROLE: values},
    )
    algorithm: Any = known_algorithms()['ppo'](kl_coeff=0.0, gae_lambda=0.9, gamma=0.97, whiten_advantages=False)
    found = algorithm.advantages(experience, lambda tensor: tensor, {})
    for score, own, advantages in zip(
        scores, values.split(lengths.tolist()), found['advantage'].split(lengths.tolist()), strict=True
    ):
        expected, later = torch.zeros(len(own), dtype=torch.float64), 0.0
        for at in reversed(range(len(own))):
            follows = own[at + 1] if at + 1 < len(own) else 0.0
            earned = score if at + 1 == len(own) else 0.0
            later = earned + 0.97 * follows - own[at] + 0.97 * 0.9 * later
            expected[at] = later
        torch.testing.assert_close(advantages.double(), expected, rtol=1e-6, atol=1e-6)
    spread(examples, f'returns/{ROLE}', found[f'returns/{ROLE}'])
    result, _ = step(critic_of(), LEARNS, examples, CUTS[1])
    assert result.loss > 0
