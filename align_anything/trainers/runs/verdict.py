"""Whether a run fits into the memory of a device, and which settings would take less of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from align_anything.configs.schema import RunCfgs
from align_anything.core.distributed import ranks_of_machine, world_size
from align_anything.core.errors import ModelError, SettingsError
from align_anything.engines.deepspeed_config import offloads_optimizer, partitions_weights
from align_anything.engines.optim import EIGHT_BITS
from align_anything.engines.process_group import device_of_rank
from align_anything.trainers.runs.settings import precision_of, sharing_of

SHARE = 0.9
"""How much of a device models and activations may take; drivers, buffers of communication and gaps take the rest."""
GIB = 2**30
TILES = 8
"""Pieces of a row that MLPs are advised to be computed in."""
Changes = dict[str, dict[str, Any]]
"""Settings by group."""


def memory_of_device() -> float:
    """Returns the bytes of this rank's device; of a CPU, its share of the machine's memory."""
    device = device_of_rank()
    if device.type == 'cuda':
        return float(torch.cuda.get_device_properties(device).total_memory)
    import psutil

    return psutil.virtual_memory().total / ranks_of_machine()


def verdict(
    cfgs: RunCfgs, needed: float, counts_all: bool, given: float | None, measure: Callable[[RunCfgs], float]
) -> str:
    """Returns a sentence on whether `needed` bytes fit into a device, and where not, what would take less.

    Args:
        cfgs: the run.
        needed: what it takes of the device.
        counts_all: whether that counts activations.
        given: GiB of the device; None for that of this rank.
        measure: what a run with other settings takes. It may raise ModelError or SettingsError where there is
            none with them.
    """
    device = memory_of_device() if given is None else given * GIB
    limit = SHARE * device
    told = f'about {needed / GIB:.3g} GiB of {device / GIB:.3g} GiB a device'
    told += '' if counts_all else ', without activations'
    if needed <= limit:
        return f'Fits: {told}.'
    lines = [
        f'Does not fit: {told}, of which {SHARE:.0%} are for models and activations. Less takes, one added to another:'
    ]
    # Nothing is won by moving what is in the memory of the machine into it.
    offloads, now = given is not None or device_of_rank().type != 'cpu', needed
    for step in STEPS:
        asked = step(cfgs, offloads)
        changed = cfgs.model_copy(
            update={group: getattr(cfgs, group).model_copy(update=values) for group, values in asked.items()}
        )
        try:
            less = measure(changed) if asked else now
        except (ModelError, SettingsError):
            continue
        # What this model, or what is left of it, does not read spares nothing.
        if less >= now:
            continue
        cfgs, now = changed, less
        words = ' '.join(f'--{key} {value}' for values in asked.values() for key, value in values.items())
        lines.append(f'  {words}: about {less / GIB:.3g} GiB' + (', which fits' if less <= limit else ''))
        if less <= limit:
            return '\n'.join(lines)
    return '\n'.join([*lines, 'Even so it does not fit: take a smaller model, shorter rows, or more devices.'])


def _half_precision(cfgs: RunCfgs, offloads: bool) -> Changes:
    return {'train_cfgs': {'bf16': True}} if precision_of(cfgs) == 'fp32' else {}


def _recomputed(cfgs: RunCfgs, offloads: bool) -> Changes:
    return {} if cfgs.train_cfgs.gradient_checkpointing else {'train_cfgs': {'gradient_checkpointing': True}}


def _all_layers_recomputed(cfgs: RunCfgs, offloads: bool) -> Changes:
    key = 'gradient_checkpointing_every_n_layers'
    return {'train_cfgs': {key: 1}} if cfgs.train_cfgs.gradient_checkpointing_every_n_layers > 1 else {}


def _fewer_rows(cfgs: RunCfgs, offloads: bool) -> Changes:
    train = cfgs.train_cfgs
    rows = train.per_device_train_batch_size
    if rows == 1 or train.max_length_per_batch is not None:
        return {}
    accumulated = rows * train.gradient_accumulation_steps
    return {'train_cfgs': {'per_device_train_batch_size': 1, 'gradient_accumulation_steps': accumulated}}


def _partitioned(cfgs: RunCfgs, offloads: bool) -> Changes:
    shares = world_size() == 1 or partitions_weights(sharing_of(cfgs))
    return {} if shares else {'train_cfgs': {'ds_cfgs': 'ds_z3_config.json'}}


def _eight_bits(cfgs: RunCfgs, offloads: bool) -> Changes:
    train = cfgs.train_cfgs
    vain = train.optimizer == EIGHT_BITS or train.engine == 'fsdp' or offloads_optimizer(sharing_of(cfgs))
    return {} if vain else {'train_cfgs': {'optimizer': EIGHT_BITS}}


def _average_aside(cfgs: RunCfgs, offloads: bool) -> Changes:
    own = cfgs.diffusion_cfgs
    stays = not offloads or own.ema_decay is None or own.ema_on_cpu
    return {} if stays else {'diffusion_cfgs': {'ema_on_cpu': True}}


def _adapters(cfgs: RunCfgs, offloads: bool) -> Changes:
    return {} if cfgs.lora_cfgs.use_lora else {'lora_cfgs': {'use_lora': True}}


def _four_bits(cfgs: RunCfgs, offloads: bool) -> Changes:
    vain = cfgs.bnb_cfgs.use_bnb or not cfgs.lora_cfgs.use_lora or cfgs.train_cfgs.engine == 'fsdp'
    return {} if vain else {'bnb_cfgs': {'use_bnb': True}}


def _activations_aside(cfgs: RunCfgs, offloads: bool) -> Changes:
    train = cfgs.train_cfgs
    vain = not offloads or train.activation_offloading or not train.gradient_checkpointing
    return {} if vain else {'train_cfgs': {'activation_offloading': True}}


def _tiled(cfgs: RunCfgs, offloads: bool) -> Changes:
    return {'train_cfgs': {'mlp_tiles': TILES}} if cfgs.train_cfgs.mlp_tiles == 1 else {}


def _states_aside(cfgs: RunCfgs, offloads: bool) -> Changes:
    train = cfgs.train_cfgs
    if not offloads or offloads_optimizer(sharing_of(cfgs)):
        return {}
    if train.engine == 'fsdp':
        return {'train_cfgs': {'fsdp_cpu_offload': True}}
    # Where no states are left, there is nothing to spare in 8 bits.
    instead = {'optimizer': 'deepspeed_cpu_adam'} if train.optimizer is not None else {}
    return {'train_cfgs': {'ds_cfgs': f'ds_z{3 if world_size() > 1 else 2}_offload_config.json', **instead}}


STEPS: tuple[Callable[[RunCfgs, bool], Changes], ...] = (
    _half_precision,
    _recomputed,
    _all_layers_recomputed,
    _fewer_rows,
    _partitioned,
    _eight_bits,
    _average_aside,
    _adapters,
    _four_bits,
    _activations_aside,
    _tiled,
    _states_aside,
)
"""What takes less memory, the cheapest first, as docs/memory.md has it. Each says of a run which settings it would
change, none where it has them or they mean nothing; of the second argument whether anything may go from the device to
the machine's memory."""
