"""Sharding a policy by FSDP2, layer by layer: a layer is gathered when it computes, the rest while the policy does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from align_anything.core.distributed import world_size
from align_anything.engines.handing import Handing

PARAMETER_TYPES = {'bf16': torch.bfloat16, 'fp32': torch.float32}


def shard(policy: nn.Module, options: Mapping[str, Any], device: torch.device) -> None:
    """Leaves each rank its share of every weight, on `device`; `options` are those of an FSDP2 configuration.

    Rank 0 has all of the model in host memory before; other ranks may have built it without weights, and are handed
    them layer by layer. Layers go to the device, are cut and are let go there one by one, so that a device never holds
    more than its share and one layer. Weights that train become float32. Every rank calls it.
    """
    half = options['precision'] == 'bf16'
    given = {
        'mesh': init_device_mesh(device.type, (world_size(),)),
        # DeepSpeed casts no inputs either: what is computed in float32 beside the weights stays so.
        'mp_policy': MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if half else None,
            reduce_dtype=torch.float32 if half else None,
            cast_forward_inputs=False,
        ),
        'offload_policy': CPUOffloadPolicy(pin_memory=device.type == 'cuda')
        if options['cpu_offload']
        else OffloadPolicy(),
    }
    lists = list(layers_of(policy))
    handing = Handing(policy, device)
    for layer in (layer for layers in lists for layer in layers):
        handing.hand(layer)
        _widen(layer)
        fully_shard(layer, reshard_after_forward=options['reshard_after_forward'], **given)
    handing.hand(policy)
    _widen(policy)
    fully_shard(policy, reshard_after_forward=False, **given)
    for layers in lists:
        # By name: the order of the last forward passes, which is torch's own choice, differs among ranks where they
        # have generated text of different lengths.
        for before, layer in zip([policy, *layers], layers, strict=False):
            layer.set_modules_to_backward_prefetch([before])


def sharded_modules(policy: nn.Module) -> list[FSDPModule]:
    """The modules that are gathered one at a time, the policy itself first."""
    return [module for module in policy.modules() if isinstance(module, FSDPModule)]


def let_go(policy: nn.Module) -> None:
    """Lets go of what is still gathered after scores that no backward pass follows, and of the order it was called in.

    A backward pass would forget that order; without one it would grow for as long as a run scores.
    """
    for module in sharded_modules(policy):
        module.reshard()
        group = module._get_fsdp_state()._fsdp_param_group
        if group is not None:
            group.comm_ctx.post_forward_order.clear()
            group._post_forward_indices.clear()


def layers_of(policy: nn.Module) -> Iterator[list[nn.Module]]:
    """Yields lists of layers that may be gathered one by one.

    They are those that their architecture says not to split, so that nothing but the layer itself reads its weights,
    as far as they stand in lists, and share no weight with the rest of the model.
    """
    names = {name for module in policy.modules() for name in getattr(module, '_no_split_modules', None) or ()}
    owners: dict[int, int] = {}
    for module in policy.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    taken: set[int] = set()
    for module in policy.modules():
        if not isinstance(module, nn.ModuleList):
            continue
        layers = [
            layer
            for layer in module
            if type(layer).__name__ in names
            and id(layer) not in taken
            and any(True for _ in layer.parameters())
            and all(owners[id(parameter)] == 1 for parameter in layer.parameters())
        ]
        taken.update(id(inner) for layer in layers for inner in layer.modules())
        if layers:
            yield layers


def _widen(module: nn.Module) -> None:
    """Makes what trains of a module float32, of which passes gather copies in the type they compute in."""
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
