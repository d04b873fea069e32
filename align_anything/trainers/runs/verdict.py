"""Whether a run fits into the memory of a device, and which settings would take less of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from align_anything.configs.schema import RunCfgs
from align_anything.core.distributed import ranks_of_machine, world_size
from align_anything.core.errors import ModelError
from align_anything.engines.deepspeed_config import offloads_optimizer, partitions_weights
from align_anything.engines.process_group import device_of_rank
from align_anything.trainers.runs.settings import precision_of, sharing_of

SHARE = 0.9
"""How much of a device models and activations may take; drivers, buffers of communication and gaps take the rest."""
GIB = 2**30


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
        measure: what a run with other settings takes. It may raise ModelError where there is none with them.
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
    for words, changed in changes(cfgs, offloads=given is not None or device_of_rank().type != 'cpu'):
        try:
            less = measure(changed)
        except ModelError:
            continue
        lines.append(f'  {words}: about {less / GIB:.3g} GiB' + (', which fits' if less <= limit else ''))
        if less <= limit:
            return '\n'.join(lines)
    return '\n'.join([*lines, 'Even so it does not fit: take a smaller model, shorter rows, or more devices.'])


def changes(cfgs: RunCfgs, offloads: bool) -> Iterator[tuple[str, RunCfgs]]:
    """Yields settings that take less memory, as they are given, with the run that has them and those before.

    What costs least comes first; `offloads` says whether the optimizer may go from the device to the machine's memory.
    """
    train = cfgs.train_cfgs
    config = sharing_of(cfgs)
    ranks, rows = world_size(), train.per_device_train_batch_size
    steps: list[tuple[str, dict[str, Any]]] = []
    if precision_of(cfgs) == 'fp32':
        steps.append(('train_cfgs', {'bf16': True}))
    if not train.gradient_checkpointing:
        steps.append(('train_cfgs', {'gradient_checkpointing': True}))
    if train.gradient_checkpointing_every_n_layers > 1:
        steps.append(('train_cfgs', {'gradient_checkpointing_every_n_layers': 1}))
    if rows > 1 and train.max_length_per_batch is None:
        accumulated = rows * train.gradient_accumulation_steps
        steps.append(('train_cfgs', {'per_device_train_batch_size': 1, 'gradient_accumulation_steps': accumulated}))
    if ranks > 1 and not partitions_weights(config):
        steps.append(('train_cfgs', {'ds_cfgs': 'ds_z3_config.json'}))
    if not cfgs.lora_cfgs.use_lora:
        steps.append(('lora_cfgs', {'use_lora': True}))
    if offloads and not train.activation_offloading:
        steps.append(('train_cfgs', {'activation_offloading': True}))
    if offloads and not offloads_optimizer(config) and train.engine == 'fsdp':
        steps.append(('train_cfgs', {'fsdp_cpu_offload': True}))
    elif offloads and not offloads_optimizer(config):
        stage = 3 if ranks > 1 else 2
        steps.append(('train_cfgs', {'ds_cfgs': f'ds_z{stage}_offload_config.json'}))
    for group, values in steps:
        cfgs = cfgs.model_copy(update={group: getattr(cfgs, group).model_copy(update=values)})
        yield ' '.join(f'--{key} {value}' for key, value in values.items()), cfgs
