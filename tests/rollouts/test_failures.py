"""How many episodes failed lately, over calls and over a resume, and when that ends a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align_anything.core.errors import WorldError
from align_anything.core.types import Skipped
from align_anything.reporting.unread import FailedEpisodes
from align_anything.rollouts.failures import Counts, check_failures, counted, require_some
from align_anything.trainers.loops.failing import Failing

LOST = [Skipped('row 1', 'OSError: no world'), Skipped('row 2', 'OSError: no world'), Skipped('row 1', 'it hangs')]


def after(*calls: tuple[int, int, int]) -> Counts:
    counts: Counts = []
    for failed, episodes, rows in calls:
        counts = counted(counts, failed, episodes, rows)
    return counts


@pytest.mark.parametrize(
    ('calls', 'most', 'reason'),
    [
        ([(2, 8, 2)], 0.1, ''),
        ([(3, 8, 2)], 0.1, '3 of the last 8'),
        ([(1, 8, 2)], 0.0, '1 of the last 8'),
        ([(0, 80, 9), (10, 80, 9)], 0.1, ''),
        ([(10, 80, 9), (10, 80, 9)], 0.1, '20 of the last 160'),
        # What lies farther back than a hundred counts no more.
        ([(10, 80, 9), (0, 80, 9), (10, 80, 9)], 0.1, ''),
        ([(2, 2, 1)], 0.1, ''),
        ([(2, 2, 2)], 0.1, 'all of the last 2 .*nothing is left'),
        ([(2, 2, 2)], 1.0, 'all of the last 2 '),
        ([(8, 8, 1), (8, 8, 1)], 1.0, 'all of the last 16 '),
        ([(0, 8, 1), (8, 8, 1)], 1.0, ''),
        ([(0, 8, 4), (8, 8, 4)], 1.0, 'all of the last 8 '),
        ([(0, 0, 0)], 0.0, ''),
        ([(8, 8, 1), (0, 0, 0)], 1.0, ''),
    ],
)
def test_what_is_too_much(calls: list[tuple[int, int, int]], most: float, reason: str) -> None:
    counts = after(*calls)
    if not reason:
        check_failures(counts, most, LOST, '')
        return
    with pytest.raises(WorldError, match=reason) as ended:
        check_failures(counts, most, LOST, 'Traceback')
    told = 'The first, of row 1: OSError: no world (2 of them); of row 1: it hangs (1 of them)'
    assert told in str(ended.value) and str(ended.value).endswith('Traceback')


def test_a_run_in_which_nothing_was_done_is_no_success() -> None:
    require_some([])
    require_some(after((0, 0, 0)))
    require_some(after((8, 8, 1), (7, 8, 1)))
    with pytest.raises(WorldError, match='all of the last 8 episodes failed'):
        require_some(after((8, 8, 1)))


class Scripted:
    """Fails so many of eight episodes in each call, as `Episodes` do."""

    def __init__(self, *lost: int) -> None:
        self.lost, self.counts = [*lost], []

    def failed(self, listed: Callable[[list[Skipped]], None]) -> list[Skipped]:
        number = self.lost.pop(0)
        self.counts = counted(self.counts, number, 8, 2)
        listed(LOST[:number])
        check_failures(self.counts, 0.1, LOST, '')
        return LOST[:number]


def test_a_run_that_goes_on_counts_as_one_that_was_not_killed(tmp_path: Path) -> None:
    def failing(folder: Path, episodes: Any, state: dict[str, Any]) -> Failing:
        folder.mkdir(exist_ok=True)
        made = Failing(episodes, 'world', FailedEpisodes(folder, None))
        made.begin(state)
        return made

    whole = failing(tmp_path / 'whole', Scripted(1, 1, 1), {})
    assert [whole.count(step) for step in range(2)] == [1, 1]
    with pytest.raises(WorldError, match='3 of the last 24'):
        whole.count(2)
    state: dict[str, Any] = {'algorithm': {}}
    broken = failing(tmp_path / 'broken', Scripted(1, 1), state)
    broken.count(0)
    broken.count(1)
    resumed = failing(tmp_path / 'broken', Scripted(1), json.loads(json.dumps(state)))
    with pytest.raises(WorldError, match='3 of the last 24'):
        resumed.count(2)
    assert failing(tmp_path / 'none', None, {}).count(0) == 0
