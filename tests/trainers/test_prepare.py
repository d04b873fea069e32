"""Scores of a reference on disk: what is complete loads no model, and ranks that write must see one folder."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align_anything.algorithms.dpo import DPO
from align_anything.core.errors import SettingsError
from align_anything.trainers.runs import reference as module
from align_anything.trainers.runs.reference import require_shared
from tests.harness.ranks import run_ranks
from tests.trainers.runs import warm, write_rows
from tests.trainers.test_reference import ROWS, opened, pairs


def test_a_complete_cache_needs_no_copy_and_the_log_counts_all_ranks(tiny: Callable[..., Path], tmp_path: Path) -> None:
    warm()
    model, rows = tiny('llama'), write_rows(tmp_path / 'rows.jsonl', pairs(ROWS))
    # Not the precision of the policy, so that it is no reference itself.
    settings = {'reference_cache_dir': tmp_path / 'cache', 'reference_dtype': 'bf16'}

    def work(rank: int) -> tuple[list[str], list[int]]:
        said: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: said.append(record.getMessage())
        module.logger.addHandler(handler)
        loaded: list[int] = []
        inner = module.frozen_copy

        def counted(*given: Any) -> Any:
            loaded.append(1)
            return inner(*given)

        module.frozen_copy = counted
        found = []
        for _ in range(2):
            opened(DPO, tmp_path / 'run', model, rows, **settings)
            found.append(len(loaded))
        return [line for line in said if 'responses scored' in line], found

    for said, loaded in run_ranks(work, 2):
        assert [line.split(' responses')[0] for line in said] == [f'reference: {2 * ROWS}', 'reference: 0']
        assert loaded == [1, 1]


def test_ranks_that_do_not_see_one_folder_are_told(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        require_shared(tmp_path)
        own = tmp_path / f'node{rank}' / 'fingerprint'
        own.mkdir(parents=True)
        with pytest.raises(SettingsError, match=r'of 2 processes only 1 see .* all nodes share'):
            require_shared(own)

    run_ranks(work, 2)
    assert not [path for path in tmp_path.rglob('*') if path.is_file()]
