from __future__ import annotations

import statistics

import pytest
import torch

from align_anything.losses.advantages import STD_FLOOR, group_relative
from align_anything.losses.shaping import (
    informative,
    missing_eos_penalty,
    normalised_sum,
    overlong_penalty,
    weighted_sum,
)


def test_a_reward_that_abstains_is_left_out_of_the_sum() -> None:
    nan = float('nan')
    rewards = {'a': torch.tensor([1.0, nan, 3.0, nan]), 'b': torch.tensor([0.5, 2.0, nan, nan]), 'c': torch.ones(4)}
    # 2 a - b, and no number for nothing but 0.
    assert weighted_sum(rewards, {'a': 2.0, 'b': -1.0}).tolist() == [1.5, -2.0, 6.0, 0.0]


def test_rewards_are_brought_to_the_scale_of_their_group_before_they_are_weighed() -> None:
    nan, groups, weights = float('nan'), [4, 9, 4, 9, 4, 9], {'a': 2.0, 'b': -0.5}
    rewards = {'a': [1.0, 300.0, 3.0, 100.0, 8.0, nan], 'b': [0.1, 0.2, nan, 0.2, 0.4, 0.2], 'c': [7.0] * 6}

    def scaled(values: list[float], number: int) -> float:
        if values[number] != values[number]:
            return 0.0
        own = [v for v, group in zip(values, groups, strict=True) if group == groups[number] and v == v]
        return (values[number] - statistics.mean(own)) / (statistics.stdev(own) + STD_FLOOR)

    expected = [sum(weight * scaled(rewards[name], number) for name, weight in weights.items()) for number in range(6)]
    tensors = {name: torch.tensor(values, dtype=torch.float64) for name, values in rewards.items()}
    found = normalised_sum(tensors, weights, torch.tensor(groups))
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
    # The advantages of each reward, weighed: and no scale of a reward changes them but by the floor.
    alone = normalised_sum({'a': tensors['a'][:5]}, {'a': 2.0}, torch.tensor(groups[:5]))
    assert torch.equal(alone, 2 * group_relative(tensors['a'][:5], torch.tensor(groups[:5])))
    larger = normalised_sum({**tensors, 'a': 1e3 * tensors['a']}, weights, torch.tensor(groups))
    assert larger.tolist() == pytest.approx(found.tolist(), rel=1e-3)


def test_the_penalty_of_length_falls_in_a_line_through_the_buffer() -> None:
    # Nothing up to 16 of 20, then a quarter for each unit.
    found = overlong_penalty(torch.tensor([1, 16, 17, 18, 19, 20, 21, 400]), max_length=20, buffer=4)
    assert found.tolist() == [0.0, 0.0, -0.25, -0.5, -0.75, -1.0, -1.0, -1.0]


def test_a_truncated_response_loses() -> None:
    assert missing_eos_penalty(torch.tensor([True, False, True]), 1.5).tolist() == [0.0, -1.5, 0.0]


def test_only_groups_whose_scores_differ_are_informative() -> None:
    scores = torch.tensor([1.0, 0.0, 1.0, 0.7, 0.7, -3.0, 0.7, 2.0])
    groups = torch.tensor([5, 5, 8, 2, 2, 8, 2, 11])
    assert informative(scores, groups).tolist() == [True, True, True, False, False, True, False, False]
