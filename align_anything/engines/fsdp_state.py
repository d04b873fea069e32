"""The state of training under FSDP2: each rank writes its shares, and any number of ranks reads them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from align_anything.core.distributed import is_main, rank
from align_anything.engines.named_state import WEIGHTS, NamedState, go_on

FOLDER = 'fsdp'
PROGRESS = 'progress.json'


def save_state(folder: Path, trained: Mapping[str, nn.Parameter], optimizer: Optimizer, schedule: LRScheduler) -> None:
    """Writes the trained parameters by name, what the optimizer has beside each, and how far both are.

    Raises what it fails of on the rank that cannot write, and on the others nothing.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    own = folder / FOLDER
    moments = {name: optimizer.state[parameter] for name, parameter in trained.items()}
    tensors = {f'{WEIGHTS}.{name}': parameter.detach() for name, parameter in trained.items()}
    tensors |= {
        f'{kind}.{name}': tensor for name, state in moments.items() for kind, tensor in state.items() if kind != 'step'
    }
    try:
        with _quiet():
            dcp.save(tensors, checkpoint_id=own)
    except CheckpointException as error:
        if rank() in error.failures:
            raise error.failures[rank()][0] from error
        return
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
) -> None:
    """Restores what `save_state` wrote, whatever the number of ranks."""
    import torch.distributed.checkpoint as dcp

    own = folder / FOLDER
    told = json.loads((own / PROGRESS).read_text(encoding='utf-8'))
    tensors: dict[str, Tensor] = {f'{WEIGHTS}.{name}': parameter.detach() for name, parameter in trained.items()}
    optimizer.state.clear()
    for name, parameter in trained.items() if told['kinds'] else ():
        state = {kind: torch.zeros_like(parameter.detach()) for kind in told['kinds']}
        tensors |= {f'{kind}.{name}': tensor for kind, tensor in state.items()}
        if told['step'] is not None:
            state['step'] = _step(told['step'], parameter, optimizer)
        optimizer.state[parameter] = state
    with _quiet():
        dcp.load(tensors, checkpoint_id=own)
    go_on(optimizer, schedule, told['schedule'])


def is_fsdp_state(folder: Path) -> bool:
    """Whether `save_state` wrote to `folder`."""
    return (folder / FOLDER / PROGRESS).is_file()


def read_by_name(folder: Path) -> NamedState:
    """The state that `save_state` wrote to `folder`, by the names of parameters."""
    import torch.distributed.checkpoint as dcp

    own = folder / FOLDER
    told = json.loads((own / PROGRESS).read_text(encoding='utf-8'))
    sizes = dcp.FileSystemReader(own).read_metadata().state_dict_metadata

    def of(name: str) -> dict[str, Tensor]:
        keys = {kind: f'{kind}.{name}' for kind in (WEIGHTS, *told['kinds'])}
        found = {key: torch.empty(sizes[key].size, dtype=sizes[key].properties.dtype) for key in keys.values()}
        with _quiet():
            dcp.load(found, checkpoint_id=own, no_dist=True)
        return {kind: found[key] for kind, key in keys.items()}

    return NamedState(of, told['step'] or 0.0, told['schedule'])


@torch.no_grad()
def take_over(
    state: NamedState,
    trained: Mapping[str, nn.Parameter],
    optimizer: Optimizer,
    schedule: LRScheduler,
    share_in: Callable[[nn.Parameter, Tensor], Tensor],
) -> None:
    """Goes on from the state of another engine; `share_in` says what this rank holds of a gathered tensor."""
    optimizer.state.clear()
    for name, parameter in trained.items():
        found = state.of(name)
        parameter.detach().to_local().copy_(share_in(parameter, found.pop(WEIGHTS).view(parameter.shape)))
        moments = {kind: torch.zeros_like(parameter.detach()) for kind in found}
        for kind, moment in moments.items():
            moment.to_local().copy_(share_in(parameter, found[kind].view(parameter.shape)))
        if moments:
            optimizer.state[parameter] = {'step': _step(state.step, parameter, optimizer), **moments}
    go_on(optimizer, schedule, state.schedule)


def _step(step: float, parameter: nn.Parameter, optimizer: Optimizer) -> Tensor:
    # The fused kernel reads it on the device.
    return torch.tensor(step, device=parameter.device if optimizer.defaults['fused'] else 'cpu')


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's advice to those who have no process group."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)
        yield
