"""What an environment gave an episode, as a reward and as a cost."""

from __future__ import annotations

from collections.abc import Sequence

from align_anything.rewards.base import Completion, Values

ENVIRONMENT = 'environment'
"""What metrics call the reward of an environment."""


def rewards_of_environment(completions: Sequence[Completion]) -> Values:
    """Returns what the environment gave in all turns and for the whole episode, None where it gave nothing."""
    return [None if item.episode is None else item.episode.reward for item in completions]


def costs_of_environment(completions: Sequence[Completion]) -> Values:
    """Returns what the turns of each episode cost."""
    return [0.0 if item.episode is None else item.episode.cost for item in completions]
