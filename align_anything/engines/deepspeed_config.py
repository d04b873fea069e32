"""The DeepSpeed configuration of one run: the user's ZeRO file plus what the run decides."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from align_anything.core.errors import SettingsError
from align_anything.engines.fsdp_config import is_fsdp, offloads_to_cpu

QUANTISED = {
    'zero_quantized_weights': 'weights gathered in 8 bits',
    'zero_quantized_nontrainable_weights': 'frozen weights kept in 8 bits',
    'zero_quantized_gradients': 'gradients reduced in few bits',
}
"""Keys of ZeRO++ that quantise, and what each does."""


def build_config(
    zero_file: Mapping[str, Any],
    *,
    micro_batch: int,
    accumulation: int,
    world_size: int,
    precision: str,
    max_grad_norm: float,
    optimizer: str,
) -> dict[str, Any]:
    """Returns a new configuration; the file's own dict is never changed.

    `precision` is `bf16`, `fp16` or `fp32`.
    """
    config = copy.deepcopy(dict(zero_file))
    loss_scaling = config.pop('fp16', {})
    config |= {
        'train_micro_batch_size_per_gpu': micro_batch,
        'gradient_accumulation_steps': accumulation,
        'train_batch_size': micro_batch * accumulation * world_size,
        'gradient_clipping': max_grad_norm,
        'zero_allow_untested_optimizer': True,
        'steps_per_print': 1 << 30,
    }
    if precision == 'bf16':
        # Without the check, a non-finite gradient would reach the weights under ZeRO-1 and 2.
        config['bf16'] = {'enabled': True, 'check_grad_overflow': True}
    elif precision == 'fp16':
        config['fp16'] = {**loss_scaling, 'enabled': True}
    if offloads_optimizer(config) and optimizer != 'deepspeed_cpu_adam':
        config['zero_force_ds_cpu_optimizer'] = False
    return config


def check_zero(zero_file: Mapping[str, Any], name: str) -> None:
    """Raises SettingsError for what DeepSpeed refuses in the section of ZeRO of the file called `name`."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    section = zero_file.get('zero_optimization') or {}
    try:
        DeepSpeedZeroConfig(**copy.deepcopy(dict(section)))
    except ValidationError as error:
        problems = [f'{".".join(map(str, found["loc"]))}: {found["msg"]}' for found in error.errors()]
        raise SettingsError(
            [f'the DeepSpeed file {name}: zero_optimization.{problem}' for problem in problems]
        ) from None


def check_sharing(zero_file: Mapping[str, Any], name: str, *, ranks: int, device_type: str) -> None:
    """Raises SettingsError for what of ZeRO++ in the file called `name` has no effect on so many ranks of such devices.

    So it does for MiCS, which DeepSpeed has no more.
    """
    section = zero_file.get('zero_optimization') or {}
    problems = [
        f'{key}: DeepSpeed has no MiCS any more; zero_hpz_partition_size keeps weights inside of so many ranks'
        for key in section
        if key.startswith('mics_')
    ]
    size = secondary_ranks(zero_file)
    asked = [key for key in QUANTISED if section.get(key)]
    if zero_stage(zero_file) != 3:
        keys = [*asked, *(['zero_hpz_partition_size'] if size > 1 else [])]
        problems += [f'{key} has no effect under ZeRO stage {zero_stage(zero_file)}; it needs stage 3' for key in keys]
    else:
        if device_type != 'cuda':
            problems += [f'{key}: its kernels are there for CUDA alone; leave it out here' for key in asked]
        if size > 1 and (ranks % size or size == ranks):
            problems.append(
                f'zero_hpz_partition_size is {size}, on {ranks} ranks; it must divide them and be less: the ranks of a '
                'machine, of several'
            )
    if problems:
        raise SettingsError([f'the DeepSpeed file {name}: zero_optimization.{problem}.' for problem in problems])


def secondary_ranks(config: Mapping[str, Any]) -> int:
    """How many ranks share the second copy of the weights that hpZ keeps; 1 where there is none."""
    return int(config.get('zero_optimization', {}).get('zero_hpz_partition_size', 1))


def zero_stage(config: Mapping[str, Any]) -> int:
    """The ZeRO stage that the configuration asks for."""
    return int(config.get('zero_optimization', {}).get('stage', 0))


def offloads_optimizer(config: Mapping[str, Any]) -> bool:
    """Whether optimizer states live in host memory or on disk."""
    own = config.get('zero_optimization', {}).get('offload_optimizer', {})
    return offloads_to_cpu(config) or own.get('device', 'none') != 'none'


def offloads_parameters(config: Mapping[str, Any]) -> bool:
    """Whether parameters live in host memory or on disk."""
    own = config.get('zero_optimization', {}).get('offload_param', {})
    return offloads_to_cpu(config) or own.get('device', 'none') != 'none'


def needs_every_parameter(config: Mapping[str, Any], world_size: int) -> bool:
    """Whether each backward pass has to reach each trainable parameter, towers too, so that batches without a kind of
    media need a dummy.

    Ranks have to run the same collectives. And on one rank, too: ZeRO-3 adds to what is left of the last step where
    the first micro-batch misses a parameter, and offloading drops the gradient where the last one does.
    """
    return world_size > 1 or zero_stage(config) == 3 or offloads_optimizer(config)


def partitions_weights(config: Mapping[str, Any]) -> bool:
    """Whether each rank holds a share of the weights: under ZeRO-3, and under FSDP2."""
    return is_fsdp(config) or zero_stage(config) == 3


def sharer_of(config: Mapping[str, Any]) -> str:
    """What shares the work among ranks, in words."""
    if is_fsdp(config):
        return 'FSDP2'
    section, size = config.get('zero_optimization', {}), secondary_ranks(config)
    told = [f'ZeRO stage {zero_stage(config)}', *([f'hpZ over {size} ranks'] if size > 1 else [])]
    return ', '.join([*told, *(words for key, words in QUANTISED.items() if section.get(key))])
