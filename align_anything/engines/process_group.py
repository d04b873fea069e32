"""Joining the processes of a run."""

from __future__ import annotations

import os
import socket

import torch
from torch import nn

from align_anything.core.distributed import world_size
from align_anything.core.errors import SettingsError
from align_anything.engines.meeting import meet

OF_ONE = {'RANK': '0', 'LOCAL_RANK': '0', 'WORLD_SIZE': '1', 'LOCAL_SIZE': '1', 'MASTER_ADDR': '127.0.0.1'}
"""What a launcher would have told the one process of a group."""
PORT = 'MASTER_PORT'


def join_process_group() -> None:
    """Joins the launcher's processes, or makes a group of one under plain python. Calling it again changes nothing.

    Where a rank failed before, the process ends (`engines/meeting.py`). Raises SettingsError when the port that the
    launcher chose is in use.
    """
    import deepspeed
    import torch.distributed as dist

    if not dist.is_initialized() and 'RANK' not in os.environ:
        os.environ.update(OF_ONE)
        os.environ.setdefault(PORT, str(_free_port()))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get('LOCAL_RANK', '0')))
    else:
        # DeepSpeed would compile its shared-memory reduction, which only its inference uses, and every process would
        # leave 66 MiB of it behind in /dev/shm. It is built only where this table calls it compatible; a table that is
        # there already also spares the probing of every other operator.
        vars(deepspeed.ops).setdefault('__compatible_ops__', {})['deepspeed_shm_comm'] = False
    # Also over a group that exists: DeepSpeed would go on believing that this process is alone.
    try:
        # Kept until all have joined: it may be this rank that the others find it at.
        met = meet() if not dist.is_initialized() and world_size() > 1 else None
        deepspeed.init_distributed(dist_backend='nccl' if torch.cuda.is_available() else 'gloo', verbose=False)
        del met
    except dist.DistNetworkError as error:
        if 'EADDRINUSE' not in str(error):
            raise
        where = f'port {os.environ["MASTER_PORT"]} of {os.environ["MASTER_ADDR"]}'
        raise SettingsError(
            [
                f'{where} is in use by another process: give another to the launcher (--master_port), or end that '
                'process.'
            ]
        ) from error


def leave_process_group() -> None:
    """Ends the group of one that `join_process_group` made, and forgets that this process was told to be its rank 0.

    A later run makes another one. Models that DeepSpeed still holds are to be collected first.
    """
    import deepspeed
    import torch.distributed as dist

    if dist.is_initialized():
        deepspeed.comm.destroy_process_group()
    for name in (*OF_ONE, PORT):
        os.environ.pop(name, None)


def device_of_rank() -> torch.device:
    """The device that this process computes on."""
    return torch.device('cuda', torch.cuda.current_device()) if torch.cuda.is_available() else torch.device('cpu')


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def give_dimensions(module: nn.Module) -> None:
    """Makes vectors of one number of parameters that are a number, which DeepSpeed neither sends nor clips."""
    for parameter in module.parameters():
        if not parameter.dim():
            parameter.data = parameter.data[None]
