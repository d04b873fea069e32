"""What is shared is made by one process and whole for all others."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.harness.once import once
from tests.harness.ranks import run_ranks


def test_two_processes_make_it_once_and_both_find_it_whole(tmp_path: Path) -> None:
    def make(folder: Path) -> None:
        folder.mkdir()
        (folder / 'begun').touch()
        time.sleep(0.2)
        (folder / 'maker').write_text(str(os.getpid()))

    def body(rank: int) -> tuple[int, str]:
        return os.getpid(), (once(tmp_path, 'model', make) / 'maker').read_text()

    (one, made), (other, found) = run_ranks(body, 2, timeout=30)
    assert made == found and int(made) in (one, other)


def test_what_a_failed_attempt_left_is_made_anew(tmp_path: Path) -> None:
    def fails(folder: Path) -> None:
        (folder / 'half').mkdir(parents=True)
        raise OSError('the disk is full')

    with pytest.raises(OSError, match='full'):
        once(tmp_path, 'model', fails)
    assert [path.name for path in once(tmp_path, 'model', Path.mkdir).iterdir()] == []
    assert once(tmp_path, 'model', fails) == tmp_path / 'model', 'it is there by now'
