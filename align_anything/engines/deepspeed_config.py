"""The DeepSpeed configuration of one run: the user's ZeRO file plus what the run decides."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from align_anything.core.errors import SettingsError
from align_anything.engines.fsdp_config import is_fsdp, offloads_to_cpu


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
    return 'FSDP2' if is_fsdp(config) else f'ZeRO stage {zero_stage(config)}'
