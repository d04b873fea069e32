"""What an environment gave an episode, as a reward and as a cost."""

from __future__ import annotations

import pytest
import torch

from align_anything.core.types import Episode, Piece, Turn
from align_anything.rewards import episodes
from align_anything.rewards.base import Completion

EMPTY = Piece(torch.empty(0, dtype=torch.int64), torch.empty(0))


def completion(*costs: dict[str, float]) -> Completion:
    turns = tuple(Turn(1, 1, (), costs=own) for own in costs)
    message = {'role': 'assistant', 'content': []}
    return Completion([], message, {}, 1, True, 'row', episode=Episode(EMPTY, [], [], turns, 'done'))


def test_an_environment_that_says_no_costs_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    episodes._tell_of_no_costs.cache_clear()
    with caplog.at_level('WARNING', logger='align_anything'):
        assert episodes.costs_of_environment([completion({}, {'hot': 0.0}), completion({})]) == [0.0, 0.0]
        assert not caplog.text
        for _ in range(2):
            assert episodes.costs_of_environment([completion({}, {})]) == [0.0]
    assert caplog.text.count('no step of 1 episodes said what it cost') == 1
