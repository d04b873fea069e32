"""Runs whose optimizer keeps its moments in 8 bits step as others do, and go on exactly from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from align_anything.algorithms.sft import SFT
from align_anything.engines.optim import EIGHT_BITS
from tests.invariants.runs import assembled, batches_by_step, fork, settings, weights, zero_file


def _train(rank: int, folder: Path, zero: Path, name: str, state: Path) -> tuple[Any, Any, Any]:
    """Weights after a step and after two, and after the second step of an engine that goes on from the first."""
    cfgs = settings(folder, 'llama', zero, optimizer=name)
    run = assembled(cfgs, 'llama')
    first, second = batches_by_step(run, folder, rank, 2)
    run.train_step(first, SFT())
    one = weights(run)
    run.save_state(state)
    run.train_step(second, SFT())
    two = weights(run)
    again = assembled(cfgs, 'llama')
    again.load_state(state)
    again.train_step(second, SFT())
    return one, two, weights(again)


@pytest.mark.extended
@pytest.mark.parametrize('stage', [0, 2, 3])
def test_runs_step_as_they_do_with_32_bits_and_resume_exactly(
    stage: int, stirred: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip('bitsandbytes')
    folder, zero = stirred('llama'), zero_file(tmp_path, stage)
    (one, two, again), _ = fork(_train, 2, folder, zero, EIGHT_BITS, tmp_path / 'less')
    (plain, _, _), _ = fork(_train, 2, folder, zero, 'adamw_torch', tmp_path / 'plain')
    for name, expected in plain.items():
        torch.testing.assert_close(one[name], expected, atol=2e-6, rtol=1e-5, msg=name)
        assert torch.equal(two[name], again[name]), name
    assert any(not torch.equal(one[name], two[name]) for name in one)
