"""Advantages against loops over lists, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from align_anything.losses.advantages import discounted_sums, gae, group_relative, last_units, rloo, token_rewards
from align_anything.losses.moments import mean_and_variance, moments, whiten
from tests.losses.ragged import LENGTHS, Lists, cut, cuts, flat, lists, per_response, segments_of

GAMMA, LAM = 0.9, 0.8
# Three groups whose responses are mixed: one of equal scores, one of one response.
SCORES = [1.0, 0.1, 0.0, 0.1, 3.5, -2.0, 0.1, 7.0]
GROUPS = [4, 9, 4, 9, 4, 4, 9, 2]
EXACT = {'rtol': 1e-12, 'atol': 1e-12}


def summed_by_loop(rows: Lists, discount: float) -> Lists:
    return [
        [sum(discount**ahead * value for ahead, value in enumerate(row[start:])) for start in range(len(row))]
        for row in rows
    ]


def gae_by_loop(values: Lists, rewards: Lists, bootstrap: list[float]) -> Lists:
    advantages = []
    for row, gains, after in zip(values, rewards, bootstrap, strict=True):
        following, running, found = after, 0.0, []
        for value, reward in zip(reversed(row), reversed(gains), strict=True):
            running = reward + GAMMA * following - value + GAMMA * LAM * running
            following = value
            found.insert(0, running)
        advantages.append(found)
    return advantages


def test_the_last_unit_of_each_response() -> None:
    ends = np.cumsum(LENGTHS) - 1
    assert torch.nonzero(last_units(segments_of(lists(0)))).flatten().tolist() == ends.tolist()
    assert last_units(torch.zeros(0, dtype=torch.int64)).tolist() == []


@pytest.mark.parametrize('discount', [0.0, 0.72, 1.0])
def test_discounted_sums_end_with_their_response(discount: float) -> None:
    rows = lists(1, lengths=(1, 2, 17, 1, 8, 3))
    found = discounted_sums(flat(rows), segments_of(rows), discount)
    torch.testing.assert_close(found, flat(summed_by_loop(rows, discount)), **EXACT)


def test_what_is_not_finite_stays_in_its_response() -> None:
    rows = [[1.0, 2.0], [float('inf'), float('nan'), 1.0], [3.0]]
    found = discounted_sums(flat(rows), segments_of(rows), 0.5)
    assert found[[0, 1, 4, 5]].tolist() == [2.0, 2.0, 1.0, 3.0]


def test_token_rewards_put_the_score_on_the_last_unit() -> None:
    kl, scores = lists(2), [1.0, -2.0, 60.0, 0.5, -70.0, 3.0]
    expected = [
        [-0.1 * value + (score if place == len(row) - 1 else 0.0) for place, value in enumerate(row)]
        for row, score in zip(kl, scores, strict=True)
    ]
    given = per_response(scores), flat(kl), segments_of(kl)
    torch.testing.assert_close(token_rewards(*given, kl_coeff=0.1), flat(expected), **EXACT)
    bounded = flat([[min(max(value, -50.0), 50.0) for value in row] for row in expected])
    torch.testing.assert_close(token_rewards(*given, kl_coeff=0.1, clip_range=50.0), bounded, **EXACT)


@pytest.mark.parametrize('truncated', [None, [0.0, 1.5, 0.0, -0.5, 2.0, 0.0]])
def test_gae(truncated: list[float] | None) -> None:
    values, rewards = lists(3), lists(4)
    bootstrap = None if truncated is None else per_response(truncated)
    advantages, returns = gae(
        flat(values), flat(rewards), segments_of(values), gamma=GAMMA, lam=LAM, bootstrap=bootstrap
    )
    expected = flat(gae_by_loop(values, rewards, truncated or [0.0] * len(values)))
    torch.testing.assert_close(advantages, expected, **EXACT)
    torch.testing.assert_close(returns, expected + flat(values), **EXACT)


def test_gae_with_lambda_one_is_the_return_less_the_value() -> None:
    values, rewards = lists(3), lists(4)
    _, returns = gae(flat(values), flat(rewards), segments_of(values), gamma=GAMMA, lam=1.0)
    torch.testing.assert_close(returns, flat(summed_by_loop(rewards, GAMMA)), **EXACT)


def test_a_perfect_critic_leaves_no_advantage_where_a_response_is_truncated() -> None:
    # A reward of one for each unit for ever is worth 1 / (1 - γ) wherever one stands.
    worth = 1 / (1 - GAMMA)
    values, rewards = [[worth] * 5], [[1.0] * 5]
    given = flat(values), flat(rewards), segments_of(values)
    advantages, _ = gae(*given, gamma=GAMMA, lam=LAM, bootstrap=per_response([worth]))
    torch.testing.assert_close(advantages, torch.zeros(5, dtype=torch.float64), **EXACT)
    assert (gae(*given, gamma=GAMMA, lam=LAM)[0] < 0).all()


def test_gae_does_not_depend_on_the_cut() -> None:
    values, rewards = lists(3), lists(4)
    whole, _ = gae(flat(values), flat(rewards), segments_of(values), gamma=GAMMA, lam=LAM)
    for batches in cuts():
        parts = []
        for numbers in batches:
            own, gains = cut(values, numbers), cut(rewards, numbers)
            parts.append(gae(flat(own), flat(gains), segments_of(own), gamma=GAMMA, lam=LAM)[0])
        torch.testing.assert_close(torch.cat(parts), whole, **EXACT)


def by_group(scores: list[float], groups: list[int], number: int) -> list[float]:
    return [score for score, group in zip(scores, groups, strict=True) if group == groups[number]]


def test_group_relative() -> None:
    everything = float(np.std(SCORES, ddof=1))
    expected: dict[str, list[float]] = {'group': [], 'batch': [], 'none': []}
    for number, score in enumerate(SCORES):
        own = by_group(SCORES, GROUPS, number)
        centred = score - np.mean(own)
        spread = float(np.std(own, ddof=1)) if len(own) > 1 else 0.0
        expected['group'].append(centred / (spread + 1e-4))
        expected['batch'].append(centred / (everything + 1e-4))
        expected['none'].append(centred)
    for scale, values in expected.items():
        found = group_relative(per_response(SCORES), torch.tensor(GROUPS), scale=scale, batch_std=everything)
        torch.testing.assert_close(found, per_response(values), **EXACT)
    assert found[0] > 0 > found[2] and found[7] == 0
    with pytest.raises(ValueError, match='batch_std'):
        group_relative(per_response(SCORES), torch.tensor(GROUPS), scale='batch')


def test_the_deviation_of_the_step_comes_from_its_moments() -> None:
    scores = per_response(SCORES)
    totals = sum(moments(part, torch.ones_like(part)) for part in scores.split(3))
    np.testing.assert_allclose(float(mean_and_variance(totals)[1].sqrt()), np.std(SCORES, ddof=1), rtol=1e-12)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_equal_scores_give_no_advantage(dtype: torch.dtype) -> None:
    # The mean of these rounds in float32, to something that a deviation of the same size would blow up.
    scores, groups = torch.full((7,), 0.7, dtype=dtype), torch.zeros(7, dtype=torch.int64)
    assert (group_relative(scores, groups).abs() < 1e-9).all()
    assert (rloo(scores, groups).abs() < 1e-9).all()


def test_rloo() -> None:
    expected = []
    for number, score in enumerate(SCORES):
        own = by_group(SCORES, GROUPS, number)
        expected.append(score - (sum(own) - score) / (len(own) - 1) if len(own) > 1 else 0.0)
    found = rloo(per_response(SCORES), torch.tensor(GROUPS))
    torch.testing.assert_close(found, per_response(expected), **EXACT)


def test_rloo_compares_responses_to_one_prompt() -> None:
    found = rloo(per_response([1.0, 0.0, 3.0, 1.0]), torch.tensor([0, 0, 1, 1]))
    assert found.tolist() == [1.0, -1.0, 2.0, -2.0]


def test_reinforce_plus_plus_whitens_the_returns_of_the_step() -> None:
    kl, scores = lists(5), [1.0, -2.0, 0.3, 0.5, -1.0, 3.0]
    rewards = [
        [-0.2 * value + (score if place == len(row) - 1 else 0.0) for place, value in enumerate(row)]
        for row, score in zip(kl, scores, strict=True)
    ]
    returns = np.array([value for row in summed_by_loop(rewards, GAMMA) for value in row])
    expected = (returns - returns.mean()) / np.sqrt(returns.var(ddof=1) + 1e-8)
    for batches in cuts():
        parts = []
        for numbers in batches:
            own = cut(kl, numbers)
            segments = segments_of(own)
            gains = token_rewards(
                per_response([scores[number] for number in numbers]), flat(own), segments, kl_coeff=0.2
            )
            parts.append(discounted_sums(gains, segments, GAMMA))
        statistics = mean_and_variance(sum(moments(part, torch.ones_like(part)) for part in parts))
        found = torch.cat([whiten(part, *statistics) for part in parts])
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10, atol=1e-12)
