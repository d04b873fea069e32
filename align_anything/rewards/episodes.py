"""What an environment gave an episode, as a reward and as a cost."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from align_anything.core.logging import get_logger
from align_anything.rewards.base import Completion, Values

logger = get_logger(__name__)

ENVIRONMENT = 'environment'
"""What metrics call the reward of an environment."""


def rewards_of_environment(completions: Sequence[Completion]) -> Values:
    """Returns what the environment gave in all turns and for the whole episode, None where it gave nothing."""
    return [None if item.episode is None else item.episode.reward for item in completions]


def costs_of_environment(completions: Sequence[Completion]) -> Values:
    """Returns what the turns of each episode cost. It is told once where no turn of any said so, not even 0."""
    turns = [turn for item in completions if item.episode is not None for turn in item.episode.turns]
    if turns and not any(turn.costs for turn in turns):
        _tell_of_no_costs(len(completions))
    return [0.0 if item.episode is None else item.episode.cost for item in completions]


@lru_cache(maxsize=1)
def _tell_of_no_costs(episodes: int) -> None:
    logger.warning(
        'no step of %d episodes said what it cost (Step.costs), so that nothing is bounded and rewards alone are '
        'learned from. An environment that can cost something says so in each step, 0 too; a cost model bounds others.',
        episodes,
    )
