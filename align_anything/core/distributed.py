"""Ranks and the few collectives that library code needs, with or without a process group.

Who asks for a rank need not wait for torch: where nothing has imported it, there is no process group.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup

T = TypeVar('T')


def rank() -> int:
    """Returns this process's rank: the process group's, else the launcher's `RANK`, else 0."""
    if _has_group():
        import torch.distributed as dist

        return dist.get_rank()
    return int(os.environ.get('RANK', '0'))


def world_size() -> int:
    """Returns the number of processes: the process group's, else the launcher's `WORLD_SIZE`, else 1."""
    if _has_group():
        import torch.distributed as dist

        return dist.get_world_size()
    return int(os.environ.get('WORLD_SIZE', '1'))


def ranks_of_machine() -> int:
    """Returns the number of processes on this machine, as the launcher says."""
    return int(os.environ.get('LOCAL_WORLD_SIZE') or os.environ.get('LOCAL_SIZE') or '1')


def is_main() -> bool:
    """Returns whether this is rank 0, the one rank that writes files and talks to people."""
    return rank() == 0


def barrier() -> None:
    """Waits until every rank is here. Raises RuntimeError when several ranks run without a process group."""
    if _collective('barrier'):
        import torch.distributed as dist

        dist.barrier()


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Returns the sum of `tensor` over all ranks, same shape, leaving the argument as it is.

    Raises RuntimeError when several ranks run without a process group.
    """
    total = tensor.detach().clone()
    if _collective('all_reduce_sum'):
        import torch.distributed as dist

        dist.all_reduce(total)
    return total


def gather_tensors(tensor: Tensor) -> list[Tensor]:
    """Returns the tensors of all ranks, of one shape, in rank order, on every rank.

    Raises RuntimeError when several ranks run without a process group.
    """
    if not _collective('gather_tensors'):
        return [tensor]
    import torch.distributed as dist

    gathered = [tensor.new_empty(tensor.shape) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, tensor.contiguous())
    return gathered


def all_gather_object(value: T, group: ProcessGroup | None = None) -> list[T]:
    """Returns every rank's picklable `value`, in rank order, on every rank, or within a `subgroup`.

    Raises RuntimeError when several ranks run without a process group.
    """
    if not _collective('all_gather_object'):
        return [value]
    import torch.distributed as dist

    gathered: list[T] = [value] * dist.get_world_size(group)
    dist.all_gather_object(gathered, value, group=group)
    return gathered


def gathered_lists(values: Sequence[T], copies: int = 1) -> list[T]:
    """Returns what the lists of all ranks hold, in rank order; of each `copies` ranks in a row, whose lists are the
    same, only once. Every rank calls it.

    Raises RuntimeError when several ranks run without a process group.
    """
    return [item for own in all_gather_object(list(values))[::copies] for item in own]


def subgroup(size: int) -> ProcessGroup | None:
    """Returns the group of this rank when each `size` ranks in a row make one. Every rank calls it."""
    if not _collective('subgroup'):
        return None
    import torch.distributed as dist

    own, _ = dist.new_subgroups(size)
    return own


def broadcast_object(value: T) -> T:
    """Returns rank 0's picklable `value` on every rank; the other ranks' argument is ignored.

    Raises RuntimeError when several ranks run without a process group.
    """
    if not _collective('broadcast_object'):
        return value
    import torch.distributed as dist

    holder = [value]
    dist.broadcast_object_list(holder, src=0)
    return holder[0]


def _has_group() -> bool:
    if 'torch.distributed' not in sys.modules:
        return False
    # Waits for another thread that is importing it.
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized()


def _collective(name: str) -> bool:
    """Returns whether a collective is needed; refuses to return a local value as if it were everyone's."""
    if _has_group():
        import torch.distributed as dist

        return dist.get_world_size() > 1
    if world_size() > 1:
        raise RuntimeError(
            f'{name}() was called on {world_size()} ranks before the process group exists. '
            'Create it first (the engine does), or unset WORLD_SIZE to run a single process.'
        )
    return False
