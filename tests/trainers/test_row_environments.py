"""Rows that name environments, compared with the run before a model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from align_anything.cli.leaves import find_run
from align_anything.configs.environment import EnvironmentCfgs
from align_anything.core.errors import DataError
from align_anything.datasets.source_loading import load_sources
from align_anything.trainers.launch import settings_of
from align_anything.trainers.runs.data import open_run
from align_anything.trainers.runs.row_environments import check_row_environments
from tests.trainers.runs import sft, text_rows, write_rows

SERVED = 'http://127.0.0.1:8100'


def check(folder: Path, of_row: Any, of_run: str | None) -> None:
    rows = text_rows(3)
    rows[2]['environment'] = of_row
    sources = load_sources(str(write_rows(folder / 'rows.jsonl', rows)), 'Alpaca')
    check_row_environments(sources, EnvironmentCfgs(environment=of_run))


@pytest.mark.parametrize(
    ('of_row', 'of_run', 'reason'),
    [
        ('calculator', None, 'but the run has none, .* Give one, such as --environment calculator'),
        ('worlds.py:Coin', None, 'such as --environment worlds.py:Coin'),
        (SERVED, None, f'such as --environment {SERVED}'),
        ('calculater', 'number_game', "unknown environment 'calculater'. Did you mean 'calculator'"),
        ('none.py:Coin', 'number_game', 'there is no file'),
        (3, 'number_game', "unknown environment '3'"),
        ('calculator', SERVED, f'but {SERVED} has one environment for all'),
    ],
)
def test_what_no_run_can_obey_is_refused(of_row: Any, of_run: str | None, reason: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f'rows.jsonl:3: the row names the environment .*{reason}'):
        check(tmp_path, of_row, of_run)


@pytest.mark.parametrize(
    ('of_row', 'of_run'),
    [
        ('kitchen', None),
        (3, None),
        (None, None),
        ('', None),
        (None, 'number_game'),
        ('calculator', 'number_game'),
        (f'{SERVED}/', SERVED),
    ],
)
def test_what_it_can_is_not_and_neither_is_what_is_about_something_else(
    of_row: Any, of_run: str | None, tmp_path: Path
) -> None:
    check(tmp_path, of_row, of_run)


@pytest.mark.parametrize('environment', [None, 'number_game'])
def test_a_run_looks_before_it_reads_a_checkpoint(environment: str | None, tmp_path: Path) -> None:
    rows = [{**row, 'environment': 'calculator' if environment is None else 'calculater'} for row in text_rows(3)]
    given = sft(tmp_path, Path('no-checkpoint'), write_rows(tmp_path / 'rows.jsonl', rows), environment=environment)
    pair, algorithm = find_run('text_to_text', 'grpo')
    resolved = settings_of(pair, algorithm, given, {})
    with pytest.raises(DataError, match='rows.jsonl:1: the row names the environment'):
        open_run(resolved.cfgs, pair, resolved.algorithm)
