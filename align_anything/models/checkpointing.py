"""Activation checkpointing: which layers the backward pass computes again, and where their inputs wait for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from align_anything.core.errors import ModelError

FLAG = 'gradient_checkpointing'


@dataclass(frozen=True)
class Checkpointing:
    """How activations are computed again.

    Attributes:
        every: of each stack of layers the first of so many is computed again; the others keep what they computed.
        offload: whether the inputs of such layers wait in host memory.
    """

    every: int = 1
    offload: bool = False

    def recomputed(self, layers: int) -> int:
        """Returns how many of a stack of layers are computed again."""
        return -(-layers // self.every)

    @property
    def function(self) -> Callable[..., Any]:
        """What calls a layer so that it is computed again: the layer, or its call, comes first in its arguments."""
        # The reentrant form gives frozen embeddings under adapters no gradient at all.
        return _offloaded if self.offload else partial(checkpoint, use_reentrant=False)


ALL_LAYERS = Checkpointing()


def choose_layers(model: nn.Module, how: Checkpointing) -> None:
    """Brings a model of transformers, whose layers all are computed again, to `how` they should be.

    Raises ModelError for one that has no layers to choose among.
    """
    for module in model.modules():
        if FLAG in vars(module):
            module._gradient_checkpointing_func = how.function
    stacks = stacks_of(model)
    if how.every > 1 and not stacks:
        raise ModelError(
            f'gradient_checkpointing_every_n_layers: {type(model).__name__} computes all layers again or none. '
            'Leave it out.'
        )
    for layers in stacks:
        for number, layer in enumerate(layers):
            setattr(layer, FLAG, number % how.every == 0)


def stacks_of(model: nn.Module) -> list[list[nn.Module]]:
    """Returns the lists of layers of a model each of which can be computed again by itself."""
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    stacks = ([layer for layer in layers if FLAG in vars(layer)] for layers in lists)
    return [layers for layers in stacks if layers]


def share_recomputed(model: nn.Module) -> float:
    """Returns the share of a model's layers that the backward pass computes again."""
    flags = [vars(layer)[FLAG] for layers in stacks_of(model) for layer in layers]
    if flags:
        return sum(flags) / len(flags)
    return float(any(vars(module).get(FLAG, False) for module in model.modules()))


def _offloaded(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    # Only the inputs are kept out here: hooks of the checkpoint itself take what the layer would keep.
    on_device = any(torch.is_tensor(item) and item.is_cuda for item in args)
    with torch.autograd.graph.save_on_cpu(pin_memory=on_device):
        return checkpoint(function, *args, use_reentrant=False, **kwargs)
