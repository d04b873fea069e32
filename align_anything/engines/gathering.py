"""Gathers a model that ZeRO-3 has partitioned on every rank for a while: to generate with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def gathered_by_zero(module: nn.Module, offload: Any) -> Iterator[None]:
    """Gathers all weights of a module on each rank; `offload` is what DeepSpeed has that partitions them."""
    import deepspeed

    parameters = list(module.parameters())
    with deepspeed.zero.GatheredParameters(parameters):
        # Each module's hooks would partition its weights again as soon as it has been called.
        for parameter in parameters:
            parameter.ds_active_sub_modules.clear()
        for hook in (*offload.forward_hooks, *offload.backward_hooks):
            hook.remove()
        offload.forward_hooks, offload.backward_hooks = [], []
        try:
            yield
        finally:
            offload._register_deepspeed_module(offload.module)
