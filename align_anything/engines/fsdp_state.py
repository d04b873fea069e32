"""The state of training under FSDP2: each rank writes its shares, and any number of ranks reads them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from align_anything.core.distributed import is_main
from align_anything.core.errors import TrainingError

FOLDER = 'fsdp'
PROGRESS = 'progress.json'
WEIGHTS = 'weights'


def save_state(folder: Path, trained: Mapping[str, nn.Parameter], optimizer: Optimizer, schedule: LRScheduler) -> None:
    """Writes the trained parameters by name, what the optimizer has beside each, and how far both are."""
    import torch.distributed.checkpoint as dcp

    own = folder / FOLDER
    moments = {name: optimizer.state[parameter] for name, parameter in trained.items()}
    tensors = {f'{WEIGHTS}.{name}': parameter.detach() for name, parameter in trained.items()}
    tensors |= {
        f'{kind}.{name}': tensor for name, state in moments.items() for kind, tensor in state.items() if kind != 'step'
    }
    with _quiet():
        dcp.save(tensors, checkpoint_id=own)
    if is_main():
        steps = [float(state['step']) for state in moments.values() if 'step' in state]
        kinds = sorted({kind for state in moments.values() for kind in state if kind != 'step'})
        told = {'step': steps[0] if steps else None, 'kinds': kinds, 'schedule': schedule.state_dict()}
        (own / PROGRESS).write_text(json.dumps(told), encoding='utf-8')


def load_state(
    folder: Path,
    trained: Mapping[str, nn.Parameter],
    optimizer: Optimizer,
    schedule: LRScheduler,
    scratch: Path | None,
) -> None:
    """Restores what `save_state` wrote, whatever the number of ranks."""
    import torch.distributed.checkpoint as dcp

    own = folder / FOLDER
    if not (own / PROGRESS).is_file():
        raise TrainingError(f'{folder} holds no state of FSDP2 that this run can load.')
    told = json.loads((own / PROGRESS).read_text(encoding='utf-8'))
    tensors: dict[str, Tensor] = {f'{WEIGHTS}.{name}': parameter.detach() for name, parameter in trained.items()}
    optimizer.state.clear()
    for name, parameter in trained.items() if told['kinds'] else ():
        state = {kind: torch.zeros_like(parameter.detach()) for kind in told['kinds']}
        tensors |= {f'{kind}.{name}': tensor for kind, tensor in state.items()}
        if told['step'] is not None:
            # On the device only for the fused kernel, which reads it there.
            state['step'] = torch.tensor(
                told['step'], device=parameter.device if optimizer.defaults['fused'] else 'cpu'
            )
        optimizer.state[parameter] = state
    with _quiet():
        dcp.load(tensors, checkpoint_id=own)
    go_on(optimizer, schedule, told['schedule'])


def go_on(optimizer: Optimizer, schedule: LRScheduler, told: Mapping[str, Any]) -> None:
    """Sets the schedule to what it told of itself, and the rates of the optimizer with it."""
    schedule.load_state_dict(dict(told))
    for group, rate in zip(optimizer.param_groups, schedule.get_last_lr(), strict=True):
        group['lr'] = rate


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's advice to those who have no process group."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)
        yield
