"""A denoiser of a few weights learns: from samples, from pairs, and from rewards of what it generates."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from align_anything.algorithms.nft import NFT
from align_anything.core.types import Example, Response
from align_anything.losses.advantages import group_relative
from align_anything.losses.nft import optimality
from align_anything.models.diffusion.prepared import LATENTS
from align_anything.policies.denoising.policy import DenoisingPolicy
from align_anything.policies.denoising.transitions import Kernel
from align_anything.rollouts.experience import record, spread
from tests.harness.local_engine import LocalEngine
from tests.policies.denoising.test_policy import CPU, GRPO, OFFLINE, infer
from tests.policies.denoising.toy import policy_of, rollout, row

PROMPTS, GROUP, DRAWS = 3, 6, 4


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


@pytest.mark.parametrize('shuffled', [False, True])
def test_nft_learns_from_what_the_old_policy_ends_with(shuffled: bool) -> None:
    """Sampled without noise by a copy that follows the policy, and trained on draws of noise for the result."""
    algorithm = NFT(contrast=1.0, reference_coeff=0.0, old_decay_rate=0.05)
    policy, old = (policy_of(dtype=torch.float32, contrast=1.0, kernel=Kernel('flow_sde', 0.7)) for _ in range(2))
    engine, seen, groups = engine_of(policy, 1e-2), [], torch.arange(PROMPTS).repeat_interleave(GROUP)
    for number in range(30):
        examples = [
            replace(
                item,
                epoch=number,
                responses=[sampled(old, item, 1000 * number + GROUP * at + own) for own in range(GROUP)],
            )
            for at, item in enumerate(map(row, range(PROMPTS)))
        ]
        rewards = rewards_of(examples).float()
        seen.append(float(rewards.mean()))
        if shuffled:
            rewards = rewards[torch.randperm(len(rewards), generator=torch.Generator().manual_seed(number))]
        record('old', infer(old, prediction=True), policy.collate, [examples], CPU)
        advantages = group_relative(rewards, groups, scale='batch', batch_std=rewards.std())
        spread(examples, 'optimality', optimality(advantages).repeat_interleave(DRAWS))
        engine.train_step([policy.collate(examples)], algorithm)
        decay = algorithm.old_decay(number + 1)
        with torch.no_grad():
            for own, other in zip(old.parameters(), policy.parameters(), strict=True):
                own.lerp_(other, 1 - decay)
    rise = sum(seen[-4:]) / 4 - sum(seen[:4]) / 4
    assert (rise > 0.4) is not shuffled, seen


def sampled(policy: DenoisingPolicy, item: Example, seed: int) -> Response:
    clean = rollout(policy, item, (), seed).media[LATENTS]
    return Response(torch.arange(DRAWS), torch.full((DRAWS,), 1 / DRAWS), {LATENTS: clean})


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
