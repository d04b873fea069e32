"""What online algorithms make of a rollout, against loops over its responses."""

from __future__ import annotations

import math

import pytest
import torch

from align_anything.algorithms.base import known_algorithms
from align_anything.algorithms.online import Experience
from align_anything.losses.kl import KL_ESTIMATORS

KNOWN = known_algorithms()
LENGTHS, GROUPS = [3, 1, 4, 2], [0, 0, 1, 1]
FINISHED = [True, False, False, True]
SCORES, COSTS = [1.0, -1.0, 0.5, 2.5], [2.0, -3.0, 0.0, 1.0]


def experience(critics: tuple[str, ...] = ('reward_critic', 'cost_critic')) -> Experience:
    generator = torch.Generator().manual_seed(0)

    def numbers() -> torch.Tensor:
        return torch.randn(sum(LENGTHS), generator=generator, dtype=torch.float64)

    return Experience(
        scores=torch.tensor(SCORES, dtype=torch.float64),
        groups=torch.tensor(GROUPS),
        segments=torch.arange(4).repeat_interleave(torch.tensor(LENGTHS)),
        finished=torch.tensor(FINISHED),
        logprobs=-numbers().abs(),
        reference=-numbers().abs(),
        values={name: numbers() for name in critics},
        bootstrap={name: numbers()[:4] for name in critics},
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


def estimated(
    scores: list[float], critic: str, kl_coeff: float, lam: float, cut_goes_on: bool = False
) -> tuple[list[float], list[float]]:
    """Generalised advantages and returns of all tokens, with a penalty of k1."""
    rollout = experience()
    found, returns = [], []
    behind = [
        value if cut_goes_on and not finished else 0.0
        for value, finished in zip(rollout.bootstrap[critic].tolist(), FINISHED, strict=True)
    ]
    parts = zip(
        *map(by_response, (rollout.logprobs, rollout.reference, rollout.values[critic])), scores, behind, strict=True
    )
    for policy, reference, values, score, last in parts:
        rewards = [-kl_coeff * (ours - theirs) for ours, theirs in zip(policy, reference, strict=True)]
        rewards[-1] += score
        ahead, reversed_ = 0.0, []
        for place in reversed(range(len(values))):
            following = values[place + 1] if place + 1 < len(values) else last
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
    rollout = experience()
    penalties = [sum(part) for part in by_response(rollout.logprobs - rollout.reference)]
    worth = [score - 0.1 * penalty for score, penalty in zip(SCORES, penalties, strict=True)]
    found = by_response(advantages(KNOWN['rloo'](kl_coeff=0.1))['advantage'])
    for one, other in ((0, 1), (1, 0), (2, 3), (3, 2)):
        assert found[one] == pytest.approx([worth[one] - worth[other]] * LENGTHS[one])


def test_reinforce_plus_plus_whitens_returns() -> None:
    rollout = experience()
    returns = []
    for policy, reference, score in zip(
        by_response(rollout.logprobs), by_response(rollout.reference), SCORES, strict=True
    ):
        rewards = [-0.1 * (ours - theirs) for ours, theirs in zip(policy, reference, strict=True)]
        rewards[-1] += score
        returns += [sum(rewards[place:]) for place in range(len(rewards))]
    found = advantages(KNOWN['reinforce_plus_plus'](kl_coeff=0.1))['advantage']
    assert found.tolist() == pytest.approx(whitened(returns))


@pytest.mark.parametrize('estimator', ['reinforce', 'reinforce_baseline', 'rloo', 'group_norm'])
@pytest.mark.parametrize('name', ['reinforce_plus_plus', 'multi_ppo'])
def test_what_an_estimator_compares_is_credited_to_tokens(name: str, estimator: str) -> None:
    # Groups of two: their means are half way, and their deviations the distance over √2.
    distances = [SCORES[0] - SCORES[1], SCORES[1] - SCORES[0], SCORES[2] - SCORES[3], SCORES[3] - SCORES[2]]
    worth = {
        'reinforce': SCORES,
        'reinforce_baseline': [distance / 2 for distance in distances],
        'rloo': distances,
        'group_norm': [distance / 2 / (abs(distance) / math.sqrt(2) + 1e-4) for distance in distances],
    }[estimator]
    rollout, gamma = experience(), 0.9
    returns = []
    for policy, reference, score in zip(
        by_response(rollout.logprobs), by_response(rollout.reference), worth, strict=True
    ):
        rewards = [-0.1 * (ours - theirs) for ours, theirs in zip(policy, reference, strict=True)]
        rewards[-1] += score
        returns += [
            sum(gamma**ahead * reward for ahead, reward in enumerate(rewards[place:])) for place in range(len(rewards))
        ]
    algorithm = KNOWN[name](advantage_estimator=estimator, num_generations=2, kl_coeff=0.1, gamma=gamma)
    expected = returns if estimator in ('rloo', 'group_norm') else whitened(returns)
    assert advantages(algorithm)['advantage'].tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ('name', 'settings', 'message'),
    [
        ('multi_ppo', {'advantage_estimator': 'gae'}, 'gae needs a critic: run the algorithm ppo'),
        ('reinforce_plus_plus', {'advantage_estimator': 'rloo'}, 'needs num_generations of 2 or more'),
        ('multi_ppo', {'dynamic_sampling_rounds': 1}, 'reinforce does not compare the responses'),
        ('ppo', {'kl_target': 6.0, 'kl_coeff': 0.0}, 'kl_target moves kl_coeff, which is 0'),
    ],
)
def test_settings_that_do_not_go_together(name: str, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KNOWN[name](**settings)


@pytest.mark.parametrize('name', ['ppo', 'saferlhf', 'rloo', 'reinforce_plus_plus'])
def test_the_kl_coefficient_follows_its_target(name: str) -> None:
    """Each rollout pays what the one before it led to."""
    rollout = experience()
    divergence = float((rollout.logprobs - rollout.reference).sum()) / 4
    assert abs(divergence) > 0.1
    still = {'lambda_update_delay_steps': 9} if name == 'saferlhf' else {}
    algorithm = KNOWN[name](kl_coeff=0.1, kl_target=abs(divergence) / 2, kl_horizon=40, **still)
    # Of 4 responses in 40; the error is bounded by 0.2 on either side.
    factor = 1 + 4 / 40 * (0.2 if divergence > 0 else -0.2)
    state: dict = {}
    kl_coeffs = [0.1, 0.1 * factor, 0.1 * factor**2]
    for kl_coeff, following in zip(kl_coeffs, kl_coeffs[1:], strict=False):
        found = advantages(algorithm, state)
        settled = advantages(KNOWN[name](kl_coeff=kl_coeff, **still))
        assert found['advantage'].tolist() == pytest.approx(settled['advantage'].tolist(), rel=1e-9)
        assert state['kl_coeff'] == pytest.approx(following) and state['response_kl'] == pytest.approx(divergence)


def test_the_kl_coefficient_moves_by_a_fifth_at_most_however_many_responses_there_are() -> None:
    state: dict = {}
    KNOWN['rloo'](kl_coeff=0.1, kl_target=1e6, kl_horizon=1).current_kl_coeff(
        experience(), lambda tensor: tensor, state
    )
    assert state['kl_coeff'] == pytest.approx(0.08)


@pytest.mark.parametrize('estimator', KL_ESTIMATORS)
def test_a_divergence_may_be_in_the_loss_too(estimator: str) -> None:
    algorithm = KNOWN['ppo'](kl_coeff=0.0, kl_loss_coeff=0.3, kl_loss_estimator=estimator, ptx_coeff=0.0)
    assert algorithm.refers and algorithm.kl_in_loss == (0.3, estimator)
    assert algorithm.coefficients() == {'policy_loss': 1.0, 'kl': 0.3}
    assert not KNOWN['ppo'](kl_coeff=0.0).refers
    assert KNOWN['ppo'](kl_coeff=0.1, ptx_coeff=0.0).coefficients() == {'policy_loss': 1.0}


@pytest.mark.parametrize('name', ['ppo', 'saferlhf'])
def test_a_truncated_response_is_bootstrapped_with_the_value_of_the_critic(name: str) -> None:
    settings = {'kl_coeff': 0.1, 'gae_lambda': 0.9, 'whiten_advantages': False, 'bootstrap_truncated': True}
    found = advantages(KNOWN[name](**settings))
    kl_coeff = 0.1 if name == 'ppo' else 0.05
    rewards, returns = estimated(SCORES, 'reward_critic', kl_coeff, 0.9, cut_goes_on=True)
    assert found['returns/reward_critic'].tolist() == pytest.approx(returns)
    if name == 'ppo':
        assert found['advantage'].tolist() == pytest.approx(rewards)


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


def test_safe_rlhf_without_critics_compares_the_responses_to_a_prompt() -> None:
    settings = {'num_generations': 2, 'kl_coeff': 0.1, 'lambda_init': 2.0, 'whiten_advantages': False}
    algorithm = KNOWN['saferlhf'](advantage_estimator='rloo', **settings)
    assert algorithm.critics == {} and KNOWN['saferlhf']().critics
    found, rollout = advantages(algorithm), experience(critics=())
    penalties = [0.05 * sum(kl) for kl in by_response(rollout.logprobs - rollout.reference)]
    worth = [
        ((score - penalty) - 2.0 * (cost + penalty)) / 3.0
        for score, cost, penalty in zip(SCORES, COSTS, penalties, strict=True)
    ]
    # Two responses to each prompt: each is against the other.
    expected = [worth[at] - worth[at ^ 1] for at in range(4) for _ in range(LENGTHS[at])]
    assert found.keys() == {'advantage'} and found['advantage'].tolist() == pytest.approx(expected)


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


def test_the_multiplier_of_events_falls_as_fast_as_it_rises() -> None:
    """A step of the multiplier itself; the mean cost is 0."""
    found = {}
    for threshold in (-0.5, 0.5):
        settings = {'lambda_init': 0.3, 'lambda_max': 1.0, 'lambda_lr': 0.1, 'lambda_update': 'linear'}
        algorithm = KNOWN['saferlhf'](threshold=threshold, lambda_update_delay_steps=0, **settings)
        state: dict = {}
        advantages(algorithm, state)
        found[threshold] = state['multiplier']
        for _ in range(100):
            advantages(algorithm, state)
        assert state['multiplier'] == pytest.approx(1.0 if threshold < 0 else 1e-6)
    mean = sum(COSTS) / len(COSTS)
    assert found[-0.5] == pytest.approx(0.3 + 0.1 * (mean + 0.5))
    assert found[0.5] == pytest.approx(0.3 + 0.1 * (mean - 0.5))


def test_advantages_under_a_bound_on_events_in_float64() -> None:
    """`(A_r - λ A_c) / (1 + λ)` (SafeVLA), each of the two by generalised advantage estimation of its own critic."""
    settings = {'kl_coeff': 0.0, 'gamma': 0.98, 'gae_lambda': 0.95, 'whiten_advantages': False}
    algorithm = KNOWN['saferlhf'](lambda_init=0.3, lambda_update='linear', **settings)
    rollout = experience()
    found = advantages(algorithm)['advantage'].double().tolist()
    expected = []
    for number, length in enumerate(LENGTHS):
        begin = sum(LENGTHS[:number])
        both = []
        for critic, worth in (('reward_critic', SCORES[number]), ('cost_critic', COSTS[number])):
            values = rollout.values[critic].double().tolist()[begin : begin + length]
            own, following = [0.0] * length, 0.0
            for at in reversed(range(length)):
                ahead = values[at + 1] if at + 1 < length else 0.0
                delta = (worth if at + 1 == length else 0.0) + 0.98 * ahead - values[at]
                following = delta + 0.98 * 0.95 * following
                own[at] = following
            both.append(own)
        expected += [(reward - 0.3 * cost) / 1.3 for reward, cost in zip(*both, strict=True)]
    assert found == pytest.approx(expected, rel=1e-6)


def test_online_dpo_keeps_the_best_and_the_worst_of_a_prompt() -> None:
    kept = KNOWN['online_dpo'](num_generations=3).kept([torch.tensor([0.1, 3.0, -2.0]), torch.tensor([1.0, 1.0, 1.0])])
    assert kept == [[1, 2], []]
