"""Facts about parameters that hold whether or not ZeRO-3 has partitioned them."""

from __future__ import annotations

import torch
from torch import nn


def full_shape(parameter: nn.Parameter) -> torch.Size:
    """The shape of the gathered parameter. ZeRO-3 leaves an empty tensor in place and the true shape beside it."""
    return getattr(parameter, 'ds_shape', parameter.shape)


def is_partitioned(parameter: nn.Parameter) -> bool:
    """Whether ZeRO-3 holds this parameter in shards."""
    return full_shape(parameter) != parameter.shape
