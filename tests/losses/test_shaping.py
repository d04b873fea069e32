from __future__ import annotations

import torch

from align_anything.losses.shaping import informative, missing_eos_penalty, overlong_penalty, weighted_sum


def test_a_reward_that_abstains_is_left_out_of_the_sum() -> None:
    nan = float('nan')
    rewards = {'a': torch.tensor([1.0, nan, 3.0, nan]), 'b': torch.tensor([0.5, 2.0, nan, nan]), 'c': torch.ones(4)}
    # 2 a - b, and no number for nothing but 0.
    assert weighted_sum(rewards, {'a': 2.0, 'b': -1.0}).tolist() == [1.5, -2.0, 6.0, 0.0]


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
