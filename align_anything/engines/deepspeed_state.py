"""The state of training that DeepSpeed wrote, by the names of parameters, and such a state as DeepSpeed reads it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from align_anything.core.distributed import barrier, is_main
from align_anything.core.errors import TrainingError
from align_anything.engines.named_state import WEIGHTS, NamedState
from align_anything.engines.reshape import is_partitioned_state, reshaped

STATE_TAG = 'deepspeed'
"""The folder that it writes to."""
MODEL = '*mp_rank_00_model_states.pt'
"""One file, or under ZeRO-3 one for each rank, which says the same of the schedule."""
BY_NAME = 'zero'
"""The folder of DeepSpeed's universal checkpoints that holds one for each parameter."""
VALUE = 'param'
OPTIMIZER = 'optimizer_state.pt'


@contextmanager
def read_by_name(folder: Path, scratch: Path, names: Sequence[str]) -> Iterator[NamedState]:
    """Gives the state in `folder`, which DeepSpeed wrote; `names` are those of trained parameters as the optimizer
    numbers them. Every rank calls it.

    Raises TrainingError where there is none that can be read.
    """
    if not (files := sorted(folder.glob(MODEL))):
        raise TrainingError(f'--resume: {folder} holds no state of DeepSpeed that FSDP2 can read.')
    if not is_partitioned_state(folder):
        found = _load(files[0])
        if 'state' not in found['optimizer']:
            raise TrainingError(
                f'--resume: {folder} is of a run in half precision without ZeRO, whose masters FSDP2 cannot read; go '
                'on with engine: deepspeed.'
            )
        own = dict(zip(names, found['optimizer']['state'].values(), strict=False))
        steps = [float(state['step']) for state in own.values()]

        def of(name: str) -> dict[str, Tensor]:
            moments = {kind: value for kind, value in own.get(name, {}).items() if kind != 'step'}
            return {WEIGHTS: found['module'][name].float(), **moments}

        yield NamedState(of, max(steps, default=0.0), found['lr_scheduler'])
        return
    with reshaped(folder, scratch) as made:

        def of(name: str) -> dict[str, Tensor]:
            stored = {file.stem: _load(file) for file in (made / BY_NAME / name).glob('*.pt') if file.stem != 'step'}
            # Of ZeRO-3 the tensors stand there by themselves.
            return {kind: value if isinstance(value, Tensor) else value[VALUE] for kind, value in stored.items()}

        yield NamedState(of, _steps_in(made / BY_NAME, names[0]), _load(files[0])['lr_scheduler'])


def _steps_in(folder: Path, name: str) -> float:
    """How many steps the optimizer took: told beside each parameter, of ZeRO-3 once for all."""
    own = folder / name / 'step.pt'
    if own.is_file():
        return float(_load(own))
    states = _load(folder / OPTIMIZER)['optimizer_state_dict']['state']
    return max((float(state['step']) for state in states.values()), default=0.0)


@contextmanager
def written_by_name(
    state: NamedState, scratch: Path, names: Sequence[str], groups: Sequence[Mapping[str, Any]]
) -> Iterator[Path]:
    """Gives `state` as a universal checkpoint of DeepSpeed below `scratch` as long as its context lasts.

    `names` are those of the trained parameters, `groups` those of the optimizer. Every rank calls it.
    """
    from deepspeed import __version__

    if is_main():
        shutil.rmtree(scratch, ignore_errors=True)
        for name in names:
            own = scratch / BY_NAME / name
            own.mkdir(parents=True)
            for kind, tensor in state.of(name).items():
                torch.save({VALUE: tensor}, own / f'{kind}.pt')
            torch.save(torch.tensor(state.step), own / 'step.pt')
        kept = [{key: value for key, value in group.items() if key != 'params'} for group in groups]
        optimizer = {'state': [{'step': torch.tensor(state.step)}], 'param_groups': kept}
        told = {'ds_version': __version__, 'param_groups': kept, 'optimizer_state_dict': optimizer}
        torch.save(told, scratch / BY_NAME / OPTIMIZER)
    barrier()
    try:
        yield scratch
    finally:
        barrier()
        if is_main():
            shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def writing_apart(engine: Any) -> Iterator[None]:
    """Lets DeepSpeed's engine finish its collectives when it cannot write; what it failed of is raised then.

    Raised at once, it would leave the other ranks in them.
    """
    failed: list[Exception] = []

    def kept(write: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **how: Any) -> None:
            try:
                write(*given, **how)
            except (OSError, RuntimeError) as error:
                failed.append(error)

        return call

    writer = engine.checkpoint_engine
    writes = ((writer, 'makedirs'), (writer, 'save'), (engine, '_copy_recovery_script'))
    for owner, name in writes:
        setattr(owner, name, kept(getattr(owner, name)))
    try:
        yield
    finally:
        for owner, name in writes:
            delattr(owner, name)
    if failed:
        raise failed[0]


def _load(file: Path) -> Any:
    return torch.load(file, map_location='cpu', weights_only=False)
