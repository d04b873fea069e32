"""Ranks whose MLPs compute rows in tiles train as one rank does without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.invariants.runs import assembled, fork, settings, train, weights, zero_file


def _train(rank: int, folder: Path, ranks: int, zero: Path, tiles: int) -> tuple[list[float], Any]:
    cfgs = settings(folder, 'llama', zero, mlp_tiles=tiles, gradient_checkpointing=tiles > 1)
    run = assembled(cfgs, 'llama')
    return train(run, folder, rank, ranks), weights(run)


@pytest.mark.extended
@pytest.mark.parametrize('stage', [0, 2, 3])
def test_tiles_train_as_one_rank_without(stage: int, stirred: Callable[..., Path], tmp_path: Path) -> None:
    folder = stirred('llama')
    ((losses, expected),) = fork(_train, 1, folder, 1, zero_file(tmp_path, 0), 1)
    # Rows of ranks are of different lengths.
    (found, state), _ = fork(_train, 2, folder, 2, zero_file(tmp_path, stage), 5)
    assert found == pytest.approx(losses, rel=1e-5)
    for name, wanted in expected.items():
        assert (state[name] - wanted).abs().max() < 1e-4, name
