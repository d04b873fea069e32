"""A denoiser of a few weights learns: from samples, from pairs, and from rewards of what it generates."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from align_anything.core.types import Example
from align_anything.losses.advantages import group_relative
from align_anything.models.diffusion.prepared import LATENTS
from align_anything.policies.denoising.policy import DenoisingPolicy
from align_anything.policies.denoising.transitions import Kernel
from align_anything.rollouts.experience import record
from tests.harness.local_engine import LocalEngine
from tests.policies.denoising.test_policy import CPU, GRPO, OFFLINE, infer
from tests.policies.denoising.toy import policy_of, rollout, row

PROMPTS, GROUP = 3, 6


def answered(policy: DenoisingPolicy, seed: int) -> list[Example]:
    rows = [row(number) for number in range(PROMPTS)]
    return [
        replace(item, responses=[rollout(policy, item, (0, 1, 2, 3), seed + GROUP * at + own) for own in range(GROUP)])
        for at, item in enumerate(rows)
    ]


def rewards_of(examples: list[Example]) -> torch.Tensor:
    """How much there is of the first channel."""
    return torch.stack([piece.media[LATENTS][0].mean() for item in examples for piece in item.responses])


def engine_of(policy: DenoisingPolicy, rate: float) -> LocalEngine:
    return LocalEngine(policy, torch.optim.Adam(policy.parameters(), lr=rate))


@pytest.mark.parametrize('shuffled', [False, True])
def test_rewards_are_learnt_and_shuffled_ones_are_not(shuffled: bool) -> None:
    policy = policy_of(dtype=torch.float32, kernel=Kernel('flow_sde', 0.7))
    engine, algorithm = engine_of(policy, 5e-3), GRPO(beta=0.0, clip_range_ratio=0.01)
    seen = []
    for number in range(24):
        examples = answered(policy, 1000 * number)
        rewards = rewards_of(examples).float()
        seen.append(float(rewards.mean()))
        if shuffled:
            rewards = rewards[torch.randperm(len(rewards), generator=torch.Generator().manual_seed(number))]
        record('old', infer(policy), policy.collate, [examples], CPU)
        advantages = group_relative(rewards, torch.arange(PROMPTS).repeat_interleave(GROUP))
        for at, piece in enumerate(own for item in examples for own in item.responses):
            piece.per_unit['advantage'] = advantages[at].expand(piece.units)
        for _ in range(2):
            engine.train_step([policy.collate(examples)], algorithm)
    rise = sum(seen[-4:]) / 4 - sum(seen[:4]) / 4
    assert (rise > 0.4) is not shuffled, seen


def test_samples_and_pairs_are_learnt() -> None:
    """The error falls on clean samples, and the preferred one of each pair is told from the other."""
    rows = [row(number, draws=4) for number in range(4)]
    policy = policy_of(dtype=torch.float32)
    engine = engine_of(policy, 1e-2)
    losses = [
        engine.train_step([policy.collate([replace(item, epoch=epoch) for item in rows])], OFFLINE['sft']).loss
        for epoch in range(60)
    ]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5]), losses
    reference = policy_of(dtype=torch.float32)
    reference.load_state_dict(policy.state_dict())
    engine, seen = engine_of(policy, 3e-3), []
    for epoch in range(40):
        batch = policy.collate([replace(item, epoch=100 + epoch) for item in rows])
        seen.append(engine.train_step([batch], OFFLINE['dpo'], {'reference': infer(reference)}).terms)
    late = seen[-5:]
    assert sum(own['reward_accuracy'] for own in late) / 5 > 0.8, late
    assert late[-1]['preference_loss'] < seen[0]['preference_loss']
