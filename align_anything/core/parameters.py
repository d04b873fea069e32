"""Facts about parameters that hold whether or not an engine has partitioned them: ZeRO-3 its way, FSDP2 as DTensors."""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def full_shape(parameter: nn.Parameter) -> torch.Size:
    """The shape of the gathered parameter. ZeRO-3 leaves an empty tensor in place and the true shape beside it."""
    return getattr(parameter, 'ds_shape', parameter.shape)


def is_partitioned(parameter: Tensor) -> bool:
    """Whether ranks hold this parameter in shards at the moment."""
    return is_sharded(parameter) or _is_emptied(parameter)


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether it is a DTensor, of which each rank has a share."""
    return isinstance(tensor, DTensor)


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a tensor, without its graph: itself, or a copy where ranks hold shards. Every rank calls it then."""
    if is_sharded(tensor):
        return tensor.detach().full_tensor()
    if not _is_emptied(tensor):
        return tensor.detach()
    import deepspeed

    with deepspeed.zero.GatheredParameters([tensor]):
        return tensor.detach().clone()


def _is_emptied(tensor: Tensor) -> bool:
    return full_shape(tensor) != tensor.shape
