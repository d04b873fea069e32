"""Gathers a partitioned model, or some of its weights, on every rank for a while: to generate with, to hand over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from align_anything.core.parameters import is_partitioned
from align_anything.engines.deepspeed_engine import DeepSpeedEngine


@contextmanager
def gathered_weights(engine: DeepSpeedEngine) -> Iterator[None]:
    """Gathers all weights of the engine's module on each rank, so that calls of it need no collectives.

    Every rank enters and leaves it; in between they may call the module as differently as they like, without
    gradients. Below ZeRO-3 it does nothing.
    """
    if engine.stage != 3:
        yield
        return
    import deepspeed

    parameters = list(engine.policy.parameters())
    offload = engine.engine.optimizer.parameter_offload
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


@contextmanager
def gathered_tensors(engine: DeepSpeedEngine, tensors: Sequence[Tensor]) -> Iterator[None]:
    """Gathers some tensors of the engine's module on each rank. Every rank enters it with the same ones."""
    if engine.stage != 3:
        yield
        return
    import deepspeed

    parameters = [tensor for tensor in tensors if isinstance(tensor, nn.Parameter) and is_partitioned(tensor)]
    with deepspeed.zero.GatheredParameters(parameters):
        yield
