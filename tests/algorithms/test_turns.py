"""Turns of episodes that are credited one by one, against loops over them in float64."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace

import pytest
import torch

from align_anything.algorithms.base import known_algorithms
from align_anything.algorithms.online import Experience

KNOWN = known_algorithms()
EXACT = {'rtol': 1e-10, 'atol': 1e-10}


@dataclass
class Spoken:
    """A turn: its tokens, what it was given and what it cost."""

    units: int
    reward: float
    cost: float


# Two prompts with two and three episodes, of unequal turns; `last` is what they were given at the end.
EPISODES = [
    ([Spoken(2, 1.0, 0.0), Spoken(1, -0.5, 2.0), Spoken(3, 0.25, 1.0)], 0.5),
    ([Spoken(1, 0.0, 1.0), Spoken(2, 2.0, 0.0)], 0.0),
    ([Spoken(3, 0.5, 0.0)], 1.0),
    ([Spoken(1, -1.0, 0.5), Spoken(1, 0.0, 0.0)], 2.0),
    ([Spoken(2, 0.75, 1.0), Spoken(2, 0.5, 3.0)], -1.0),
]
GROUPS = [0, 0, 1, 1, 1]
UNITS = [sum(turn.units for turn in turns) for turns, _ in EPISODES]
Rows = list[list[float]]


def at_ends(worth: str) -> Rows:
    """What turns are worth at their last token, by episode."""
    rows: Rows = []
    for turns, _ in EPISODES:
        row: list[float] = []
        for turn in turns:
            row += [0.0] * (turn.units - 1) + [getattr(turn, worth)]
        rows.append(row)
    return rows


def totals(worth: str, last: bool) -> list[float]:
    return [sum(getattr(turn, worth) for turn in turns) + (end if last else 0.0) for turns, end in EPISODES]


def flat(rows: Rows) -> torch.Tensor:
    return torch.tensor([value for row in rows for value in row], dtype=torch.float64)


def experience() -> Experience:
    generator = torch.Generator().manual_seed(0)

    def numbers() -> torch.Tensor:
        return torch.randn(sum(UNITS), generator=generator, dtype=torch.float64)

    turns = [number for turns, _ in EPISODES for number, turn in enumerate(turns) for _ in range(turn.units)]
    return Experience(
        scores=torch.tensor(totals('reward', True), dtype=torch.float64),
        groups=torch.tensor(GROUPS),
        segments=torch.arange(len(UNITS)).repeat_interleave(torch.tensor(UNITS)),
        finished=torch.ones(len(UNITS), dtype=torch.bool),
        logprobs=-numbers().abs(),
        reference=-numbers().abs(),
        values={'reward_critic': numbers(), 'cost_critic': numbers()},
        costs=torch.tensor(totals('cost', False), dtype=torch.float64),
        all_costs=totals('cost', False),
        turns=torch.tensor(turns),
        turn_rewards=flat(at_ends('reward')),
        turn_costs=flat(at_ends('cost')),
    )


def advantages(algorithm: object) -> dict[str, torch.Tensor]:
    return algorithm.advantages(experience(), lambda tensor: tensor, {})


def split(values: torch.Tensor) -> Rows:
    return [part.tolist() for part in values.split(UNITS)]


def kl_rows() -> Rows:
    rollout = experience()
    return split(rollout.logprobs - rollout.reference)


def estimated(worth: str, last: bool, critic: str, kl_coeff: float, gamma: float, lam: float) -> Rows:
    """Generalised advantages of each token, with a penalty of k1."""
    found: Rows = []
    rows = zip(at_ends(worth), kl_rows(), split(experience().values[critic]), EPISODES, strict=True)
    for given, kl, values, (_, end) in rows:
        rewards = [value - kl_coeff * off for value, off in zip(given, kl, strict=True)]
        rewards[-1] += end if last else 0.0
        ahead, own = 0.0, []
        for at in reversed(range(len(values))):
            following = values[at + 1] if at + 1 < len(values) else 0.0
            ahead = rewards[at] + gamma * following - values[at] + gamma * lam * ahead
            own.insert(0, ahead)
        found.append(own)
    return found


def returns_of_turns(worth: str, last: bool, kl_coeff: float = 0.0) -> Rows:
    """What was to come from the beginning of each turn."""
    found: Rows = []
    for (turns, end), kl in zip(EPISODES, kl_rows(), strict=True):
        at, worths = 0, []
        for turn in turns:
            worths.append(getattr(turn, worth) - kl_coeff * sum(kl[at : at + turn.units]))
            at += turn.units
        worths[-1] += end if last else 0.0
        found.append([sum(worths[number:]) for number in range(len(worths))])
    return found


def others_of(returns: Rows, episode: int, turn: int) -> list[float]:
    """What the same turn had to come in the other episodes to the prompt that had it."""
    return [
        own[turn]
        for number, own in enumerate(returns)
        if GROUPS[number] == GROUPS[episode] and number != episode and turn < len(own)
    ]


def by_turn(returns: Rows, compare: object) -> list[list[float]]:
    """The advantage of each token, by `compare` of a return and those of the others."""
    return [
        [
            compare(value, others_of(returns, episode, number)) if others_of(returns, episode, number) else 0.0
            for number, value in enumerate(own)
            for _ in range(EPISODES[episode][0][number].units)
        ]
        for episode, own in enumerate(returns)
    ]


def test_ppo_is_given_rewards_at_the_end_of_turns() -> None:
    algorithm = KNOWN['ppo'](kl_coeff=0.1, gamma=0.9, gae_lambda=0.8, whiten_advantages=False)
    found = advantages(algorithm)
    expected = flat(estimated('reward', True, 'reward_critic', 0.1, 0.9, 0.8))
    torch.testing.assert_close(found['advantage'], expected, **EXACT)
    values = experience().values['reward_critic']
    torch.testing.assert_close(found['returns/reward_critic'], expected + values, **EXACT)


def test_safe_rlhf_is_given_costs_at_the_end_of_turns() -> None:
    algorithm = KNOWN['saferlhf'](kl_coeff=0.2, gae_lambda=0.7, whiten_advantages=False, lambda_init=2.0)
    found = advantages(algorithm)
    rewards = flat(estimated('reward', True, 'reward_critic', 0.1, 1.0, 0.7))
    costs = flat(estimated('cost', False, 'cost_critic', -0.1, 1.0, 0.7))
    torch.testing.assert_close(found['advantage'], (rewards - 2 * costs) / 3, **EXACT)
    torch.testing.assert_close(found['returns/cost_critic'], costs + experience().values['cost_critic'], **EXACT)


def test_safe_rlhf_without_critics_compares_turns() -> None:
    changes = {'advantage_estimator': 'rloo', 'num_generations': 2, 'whiten_advantages': False}
    found = advantages(KNOWN['saferlhf'](kl_coeff=0.2, lambda_init=2.0, **changes))

    def less(value: float, others: list[float]) -> float:
        return value - statistics.mean(others)

    rewards = flat(by_turn(returns_of_turns('reward', True, 0.1), less))
    costs = flat(by_turn(returns_of_turns('cost', False, -0.1), less))
    torch.testing.assert_close(found['advantage'], (rewards - 2 * costs) / 3, **EXACT)


def test_grpo_compares_turns_of_one_number() -> None:
    found = advantages(KNOWN['grpo'](scale_rewards='group'))['advantage']

    def standard(value: float, others: list[float]) -> float:
        own = [value, *others]
        return (value - statistics.mean(own)) / (statistics.stdev(own) + 1e-4)

    expected = flat(by_turn(returns_of_turns('reward', True), standard))
    torch.testing.assert_close(found, expected, **EXACT)
    # The third turn of the first episode has none to be compared with.
    assert found[3:6].tolist() == [0.0] * 3 and found[:3].all()


def test_grpo_may_scale_by_all_turns() -> None:
    found = advantages(KNOWN['grpo'](scale_rewards='batch'))['advantage']
    returns = returns_of_turns('reward', True)
    deviation = statistics.stdev(value for own in returns for value in own)
    expected = by_turn(returns, lambda value, others: value - statistics.mean([value, *others]))
    torch.testing.assert_close(found, flat(expected) / (math.sqrt(deviation**2 + 0) + 1e-4), rtol=1e-6, atol=1e-6)


def test_rloo_takes_the_divergence_off_from_a_turn_on() -> None:
    found = advantages(KNOWN['rloo'](kl_coeff=0.3, importance_level='token'))['advantage']
    expected = by_turn(returns_of_turns('reward', True, 0.3), lambda value, others: value - statistics.mean(others))
    torch.testing.assert_close(found, flat(expected), **EXACT)


def test_reinforce_sums_what_comes() -> None:
    found = advantages(KNOWN['reinforce_plus_plus'](kl_coeff=0.0, gamma=0.5))['advantage']
    sums: Rows = []
    for given, (_, end) in zip(at_ends('reward'), EPISODES, strict=True):
        rewards = [*given[:-1], given[-1] + end]
        sums.append([sum(0.5**on * value for on, value in enumerate(rewards[at:])) for at in range(len(rewards))])
    values = [value for row in sums for value in row]
    mean, deviation = statistics.mean(values), math.sqrt(statistics.variance(values) + 1e-8)
    torch.testing.assert_close(found, (flat(sums) - mean) / deviation, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('name', ['grpo', 'rloo'])
def test_episodes_of_one_turn_are_compared_as_responses_are(name: str) -> None:
    rollout, algorithm = experience(), KNOWN[name](importance_level='token')
    one = replace(rollout, turns=torch.zeros_like(rollout.turns))
    whole = replace(rollout, turns=None, turn_rewards=None)
    found, expected = (algorithm.advantages(own, lambda tensor: tensor, {})['advantage'] for own in (one, whole))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert float((advantages(algorithm)['advantage'] - expected).abs().max()) > 0.1


@pytest.mark.parametrize(
    ('name', 'settings', 'reason'),
    [
        ('online_dpo', {}, 'online_dpo compares whole responses'),
        ('nft', {}, 'nft compares whole responses'),
        ('rloo', {}, 'importance_level sequence_product is one ratio'),
        ('grpo', {'importance_level': 'sequence'}, 'importance_level sequence is one ratio'),
        ('reinforce_plus_plus', {'advantage_estimator': 'rloo', 'num_generations': 2}, 'advantage_estimator rloo'),
    ],
)
def test_what_cannot_tell_turns_apart_is_refused(name: str, settings: dict[str, object], reason: str) -> None:
    (problem,) = KNOWN[name](**settings).problems_of_turns()
    assert problem.startswith('environment_cfgs.credit: ') and reason in problem


@pytest.mark.parametrize('name', ['grpo', 'ppo', 'saferlhf', 'reinforce_plus_plus'])
def test_what_can_says_nothing(name: str) -> None:
    assert KNOWN[name]().problems_of_turns() == []
    assert KNOWN['rloo'](importance_level='sequence_token').problems_of_turns() == []
