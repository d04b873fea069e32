"""Ranks whose layers are compiled one by one train as one rank does with plain ones, on both engines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align_anything.models import compiling
from align_anything.models.compiling import CompiledForward, Compiling
from tests.invariants.runs import assembled, fork, settings, train, weights, zero_file

CELLS: dict[str, tuple[str, dict[str, Any]]] = {
    'ZeRO-2, rows without padding': ('llama', {'layout': 'packed'}),
    'ZeRO-2, padded': ('llama', {'layout': 'padded'}),
    'FSDP2': ('llama', {'engine': 'fsdp', 'gradient_checkpointing': True}),
    'FSDP2, pictures': ('llava', {'engine': 'fsdp'}),
    'shared rows': ('llama', {'layout': 'packed', 'sequence_parallel_size': 2, 'gradient_checkpointing': True}),
}


def _train(rank: int, folder: Path, family: str, ranks: int, zero: Path, more: dict[str, Any]) -> Any:
    compiling.BACKEND = 'eager'
    engine = more.pop('engine', 'deepspeed')
    cfgs = settings(folder, family, zero, **more)
    cfgs = cfgs.model_copy(update={'train_cfgs': cfgs.train_cfgs.model_copy(update={'engine': engine})})
    run = assembled(cfgs, family)
    shares = more.get('sequence_parallel_size', 1)
    losses = train(run, folder, rank // shares, ranks // shares)
    compiled = [own.forward for own in run.policy.modules() if isinstance(vars(own).get('forward'), CompiledForward)]
    return losses, weights(run), [(own.has_run, own.failed, own.shared) for own in compiled]


@pytest.mark.extended
@pytest.mark.parametrize('cell', CELLS)
def test_compiled_layers_train_as_one_rank_does_without(
    cell: str, stirred: Callable[..., Path], tmp_path: Path
) -> None:
    family, more = CELLS[cell]
    # Heads are 32 wide, so that there are two of them.
    folder = stirred(family, hidden=64)
    ((losses, expected, none),) = fork(_train, 1, folder, family, 1, zero_file(tmp_path, 0), {})
    more = {'torch_compile': True, **more}
    (found, state, compiled), _ = fork(_train, 2, folder, family, 2, zero_file(tmp_path, 2), more)
    assert found == pytest.approx(losses, rel=1e-5)
    for name, wanted in expected.items():
        assert (state[name] - wanted).abs().max() < 1e-4, name
    # Rows of many lengths, one of them at a time and several, for gradients and without: not too many forms.
    assert not none and len(compiled) >= 2
    assert all(one == (True, False, Compiling()) for one in compiled)
