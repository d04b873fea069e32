"""What online algorithms make of a rollout, against loops over its responses."""

from __future__ import annotations

import math

import pytest
import torch

from align_anything.algorithms.base import known_algorithms
from align_anything.algorithms.online import Experience

KNOWN = known_algorithms()
LENGTHS, GROUPS = [3, 1, 4, 2], [0, 0, 1, 1]
SCORES, COSTS = [1.0, -1.0, 0.5, 2.5], [2.0, -3.0, 0.0, 1.0]


def experience(critics: tuple[str, ...] = ('reward_critic', 'cost_critic')) -> Experience:
    generator = torch.Generator().manual_seed(0)

    def numbers() -> torch.Tensor:
        return torch.randn(sum(LENGTHS), generator=generator, dtype=torch.float64)

    return Experience(
        scores=torch.tensor(SCORES, dtype=torch.float64),
        groups=torch.tensor(GROUPS),
        segments=torch.arange(4).repeat_interleave(torch.tensor(LENGTHS)),
        logprobs=-numbers().abs(),
        reference=-numbers().abs(),
        values={name: numbers() for name in critics},
        costs=torch.tensor(COSTS, dtype=torch.float64),
        all_costs=COSTS,
    )


def by_response(values: torch.Tensor) -> list[list[float]]:
    return [part.tolist() for part in values.split(LENGTHS)]


def advantages(algorithm, state: dict | None = None) -> dict[str, torch.Tensor]:
    return algorithm.advantages(experience(), lambda tensor: tensor, {} if state is None else state)


def whitened(values: list[float]) -> list[float]:
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) + 1e-8)
    return [(value - mean) / deviation for value in values]


def estimated(scores: list[float], critic: str, kl_coeff: float, lam: float) -> tuple[list[float], list[float]]:
    """Generalised advantages and returns of all tokens, with a penalty of k1."""
    drawn = experience()
    found, returns = [], []
    parts = zip(*map(by_response, (drawn.logprobs, drawn.reference, drawn.values[critic])), scores, strict=True)
    for policy, reference, values, score in parts:
        rewards = [-kl_coeff * (ours - theirs) for ours, theirs in zip(policy, reference, strict=True)]
        rewards[-1] += score
        ahead, reversed_ = 0.0, []
        for place in reversed(range(len(values))):
            following = values[place + 1] if place + 1 < len(values) else 0.0
            ahead = rewards[place] + following - values[place] + lam * ahead
            reversed_.append(ahead)
        found += reversed_[::-1]
        returns += [advantage + value for advantage, value in zip(reversed_[::-1], values, strict=True)]
    return found, returns


def test_grpo_compares_within_the_group() -> None:
    found = advantages(KNOWN['grpo']())
    assert found.keys() == {'advantage'}
    # Both groups have two scores, whose deviations are the distance over √2.
    expected = [1.0 / (math.sqrt(2.0) + 1e-4), -1.0 / (math.sqrt(2.0) + 1e-4)]
    assert by_response(found['advantage'])[0] == pytest.approx([expected[0]] * 3)
    assert by_response(found['advantage'])[2] == pytest.approx([expected[1]] * 4)


def test_rloo_takes_the_divergence_of_the_response_off() -> None:
    drawn = experience()
    penalties = [sum(part) for part in by_response(drawn.logprobs - drawn.reference)]
    worth = [score - 0.1 * penalty for score, penalty in zip(SCORES, penalties, strict=True)]
    found = by_response(advantages(KNOWN['rloo'](kl_coeff=0.1))['advantage'])
    for one, other in ((0, 1), (1, 0), (2, 3), (3, 2)):
        assert found[one] == pytest.approx([worth[one] - worth[other]] * LENGTHS[one])


def test_reinforce_plus_plus_whitens_returns() -> None:
    drawn = experience()
    returns = []
    for policy, reference, score in zip(by_response(drawn.logprobs), by_response(drawn.reference), SCORES, strict=True):
        rewards = [-0.1 * (ours - theirs) for ours, theirs in zip(policy, reference, strict=True)]
        rewards[-1] += score
        returns += [sum(rewards[place:]) for place in range(len(rewards))]
    found = advantages(KNOWN['reinforce_plus_plus'](kl_coeff=0.1))['advantage']
    assert found.tolist() == pytest.approx(whitened(returns))


@pytest.mark.parametrize('whiten', [True, False])
def test_ppo_learns_what_the_critic_did_not_expect(whiten: bool) -> None:
    found = advantages(KNOWN['ppo'](kl_coeff=0.1, gae_lambda=0.9, whiten_advantages=whiten))
    expected, returns = estimated(SCORES, 'reward_critic', 0.1, 0.9)
    assert found['advantage'].tolist() == pytest.approx(whitened(expected) if whiten else expected)
    assert found['returns/reward_critic'].tolist() == pytest.approx(returns)


def test_safe_rlhf_weighs_costs_by_the_multiplier() -> None:
    algorithm = KNOWN['saferlhf'](kl_coeff=0.1, gae_lambda=0.9, lambda_init=2.0, whiten_advantages=False)
    found = advantages(algorithm)
    rewards, reward_returns = estimated(SCORES, 'reward_critic', 0.05, 0.9)
    costs, cost_returns = estimated(COSTS, 'cost_critic', -0.05, 0.9)
    expected = [(reward - 2.0 * cost) / 3.0 for reward, cost in zip(rewards, costs, strict=True)]
    assert found['advantage'].tolist() == pytest.approx(expected)
    assert found['returns/reward_critic'].tolist() == pytest.approx(reward_returns)
    assert found['returns/cost_critic'].tolist() == pytest.approx(cost_returns)


@pytest.mark.parametrize(('threshold', 'rises'), [(-0.5, True), (0.5, False)])
def test_the_multiplier_follows_the_cost_after_its_delay(threshold: float, rises: bool) -> None:
    """The mean cost is 0."""
    algorithm = KNOWN['saferlhf'](threshold=threshold, lambda_init=2.0, lambda_lr=0.1, episode_cost_window_size=6)
    state: dict = {}
    advantages(algorithm, state)
    assert state['multiplier'] == pytest.approx(2.0), 'the first rollout is within the delay'
    advantages(algorithm, state)
    # Of the second rollout and the last two of the first.
    assert state['costs'] == [0.0, 1.0, *COSTS]
    mean = sum(state['costs']) / 6
    assert state['multiplier'] == pytest.approx(math.exp(math.log(2.0) + 0.1 * 2.0 * (mean - threshold)))
    assert (state['multiplier'] > 2.0) == rises
    for _ in range(100):
        advantages(algorithm, state)
    assert (state['multiplier'] == pytest.approx(20.0)) == rises


def test_online_dpo_keeps_the_best_and_the_worst_of_a_prompt() -> None:
    kept = KNOWN['online_dpo'](num_generations=3).kept([torch.tensor([0.1, 3.0, -2.0]), torch.tensor([1.0, 1.0, 1.0])])
    assert kept == [[1, 2], []]
