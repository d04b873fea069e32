"""A rank that fails before all have joined the process group tells the others, which would wait for it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from align_anything.core.errors import SettingsError
from align_anything.engines import meeting
from align_anything.engines.meeting import tell_others
from align_anything.engines.process_group import join_process_group
from align_anything.trainers import launch
from align_anything.trainers.pairs import PAIRS
from tests.harness.ranks import RanksError, run_ranks
from tests.trainers.runs import die, warm


def ends(folder: Path, on_the_way: Callable[[int], Any], patience: float = 30.0) -> tuple[list[str], list[str]]:
    """What each of two ranks, on a node each, came to and wrote, when they join after what each does on the way."""
    warm()

    def joining(rank: int) -> None:
        # Both have met in that of the harness.
        dist.barrier()
        dist.destroy_process_group()
        os.environ['LOCAL_RANK'] = '0'
        meeting.socket.gethostname = lambda: f'node-{rank + 1}'
        meeting.LEAVING_SECONDS, meeting.PATIENCE, meeting.TOLD_AFTER = 15.0, patience, patience / 4
        with open(folder / str(rank), 'w', buffering=1) as file, redirect_stderr(file):
            os.dup2(file.fileno(), 2)
            on_the_way(rank)
            join_process_group()
            assert dist.get_world_size() == 2

    kinds = [''] * 2
    try:
        run_ranks(joining, 2, timeout=40.0)
    except RanksError as error:
        kinds = error.kinds
    return kinds, [(folder / str(rank)).read_text() for rank in range(2)]


def fails(error: Exception, number: int) -> Callable[[int], None]:
    def on_the_way(rank: int) -> None:
        if rank == number:
            tell_others(error)
            raise error

    return on_the_way


def test_all_that_come_join(tmp_path: Path) -> None:
    assert ends(tmp_path, lambda rank: None) == (['', ''], ['', ''])


@pytest.mark.parametrize('number', [0, 1])
def test_who_failed_on_the_way_is_told_to_the_others(tmp_path: Path, number: int) -> None:
    kinds, written = ends(tmp_path, fails(ImportError('no module named torchaudio'), number))
    assert kinds[number] == 'ImportError' and kinds[1 - number] == 'SystemExit'
    assert f'ERROR TrainingError:\nrank {number} on node-{number + 1} (process ' in written[1 - number]
    assert 'did not come to meet the others: ImportError: no module named torchaudio' in written[1 - number]


def test_all_that_fail_alike_say_so_once_and_wait_for_nobody(tmp_path: Path) -> None:
    def on_the_way(rank: int) -> None:
        tell_others(SettingsError(['wrong']))
        raise SettingsError(['wrong'])

    assert ends(tmp_path, on_the_way) == (['SettingsError'] * 2, ['', ''])


def test_who_was_killed_on_the_way_is_missed(tmp_path: Path) -> None:
    kinds, (first, _) = ends(tmp_path, lambda rank: die() if rank == 1 else None, patience=2.0)
    assert kinds == ['SystemExit', 'SIGKILL']
    assert 'still waiting for rank 1, which may be on the way' in first
    assert 'ERROR TrainingError:\nrank 1 did not come within 2 seconds' in first


def test_the_entry_of_trainers_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[BaseException] = []
    monkeypatch.setattr(launch, 'tell_others', told.append)
    monkeypatch.setattr(sys, 'argv', ['sft', '--config', '/nowhere.yaml'])
    with pytest.raises(SystemExit):
        launch.leaf('text_to_text', 'sft')()
    monkeypatch.setattr(launch, 'settings_of', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        launch.launch(PAIRS['text_to_text'], launch.find_algorithm('sft'))
    assert [type(error) for error in told] == [SettingsError, ZeroDivisionError]
