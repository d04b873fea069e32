from __future__ import annotations

import math

import pytest
import torch

from align_anything.losses.advantages import gae, token_rewards
from align_anything.losses.lagrange import lagrangian_advantages, recent, updated_log_multiplier
from tests.losses.ragged import flat, lists, per_response, segments_of


def test_reward_raises_and_cost_lowers_the_advantage() -> None:
    rewards, costs = flat(lists(1)), flat(lists(2))
    for multiplier in (0.0, 0.5, 10.0):
        expected = [
            (reward - multiplier * cost) / (1 + multiplier) for reward, cost in zip(rewards, costs, strict=True)
        ]
        torch.testing.assert_close(lagrangian_advantages(rewards, costs, multiplier), torch.stack(expected))


def test_the_multiplier_is_raised_while_the_cost_is_above_its_threshold() -> None:
    log_multiplier = math.log(2.0)

    def updated(cost: float, maximum: float | None = None) -> float:
        return updated_log_multiplier(log_multiplier, cost, learning_rate=0.1, threshold=-0.5, maximum=maximum)

    # 0.1 · 2 · (cost + 0.5)
    assert updated(1.0) == pytest.approx(log_multiplier + 0.3, rel=1e-12)
    assert updated(-1.5) == pytest.approx(log_multiplier - 0.2, rel=1e-12)
    assert updated(-0.5) == log_multiplier
    assert updated(100.0, maximum=20.0) == math.log(20.0)


def test_the_update_is_a_step_of_gradient_ascent() -> None:
    log_multiplier = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    (log_multiplier.exp() * (1.3 - 0.2)).backward()
    expected = float(log_multiplier.detach() + 0.05 * log_multiplier.grad)
    assert updated_log_multiplier(0.7, 1.3, learning_rate=0.05, threshold=0.2) == pytest.approx(expected, rel=1e-12)


def test_the_window_keeps_the_latest_costs() -> None:
    window = recent([], [1.0, 2.0], 3)
    assert window == [1.0, 2.0]
    assert recent(window, [3.0, 4.0], 3) == [2.0, 3.0, 4.0]
    assert recent(window, [5.0, 6.0, 7.0, 8.0], 3) == [6.0, 7.0, 8.0]


@pytest.mark.parametrize('multiplier', [0.0, 1.0, 7.0])
def test_half_of_the_penalty_reaches_the_policy_whatever_the_multiplier(multiplier: float) -> None:
    kl, values = lists(3), flat(lists(4))
    segments, nothing = segments_of(kl), per_response([0.0] * len(kl))

    def advantages(coeff: float) -> torch.Tensor:
        rewards = token_rewards(nothing, flat(kl), segments, kl_coeff=coeff)
        return gae(torch.zeros_like(values), rewards, segments, gamma=1.0, lam=0.95)[0]

    found = lagrangian_advantages(advantages(0.2 / 2), advantages(-0.2 / 2), multiplier)
    torch.testing.assert_close(found, advantages(0.2 / 2), rtol=1e-12, atol=1e-14)
