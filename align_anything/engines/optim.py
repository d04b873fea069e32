"""Optimizers, parameter groups and learning-rate schedules."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from align_anything.core.errors import SettingsError
from align_anything.core.parameters import full_shape

EIGHT_BITS = 'adamw_8bit'


def state_bytes(name: str) -> float:
    """Returns how many bytes of the moments of the named optimizer there are to a parameter.

    Of those in 8 bits each block of 256 has a scale in float32 (Dettmers et al., 2021, arXiv:2110.02861, section 2).
    """
    return 2 * (1 + 4 / 256) if name == EIGHT_BITS else 2 * 4


def choose_optimizer(name: str | None, *, device_type: str, offload: bool) -> str:
    """Returns the named optimizer, or the one for the device: DeepSpeedCPUAdam when the states are offloaded, fused
    AdamW on CUDA, plain AdamW elsewhere.

    Raises SettingsError for one that is not installed, or that has nothing to spare where the states are.
    """
    if name == EIGHT_BITS:
        if importlib.util.find_spec('bitsandbytes') is None:
            raise SettingsError(
                [f'train_cfgs.optimizer: {name} needs bitsandbytes: pip install "align-anything[bnb]".']
            )
        if offload:
            raise SettingsError(
                [
                    f'train_cfgs.optimizer: {name} spares memory of the device, where the file of train_cfgs.ds_cfgs '
                    'leaves no states. Leave one of both out.'
                ]
            )
    if name is not None:
        return name
    if offload:
        return 'deepspeed_cpu_adam'
    return 'adamw_torch_fused' if device_type == 'cuda' else 'adamw_torch'


def parameter_groups(
    parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    learning_rate: float,
    weight_decay: float,
    rates: Mapping[str, float],
) -> list[dict[str, Any]]:
    """Groups trainable parameters by learning rate and decay.

    Vectors (biases, norms) are not decayed. `rates` maps a parameter name to its own learning rate; the others get
    `learning_rate`. The order of parameters inside a group is the order given.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in parameters:
        if not parameter.requires_grad:
            continue
        key = (rates.get(name, learning_rate), weight_decay if len(full_shape(parameter)) > 1 else 0.0)
        group = groups.setdefault(key, {'params': [], 'lr': key[0], 'weight_decay': key[1]})
        group['params'].append(parameter)
    return list(groups.values())


def make_optimizer(
    name: str, groups: list[dict[str, Any]], *, betas: tuple[float, float], eps: float
) -> torch.optim.Optimizer:
    """Builds the named optimizer over the groups. The settings know which names exist."""
    if name == 'adamw_torch':
        return torch.optim.AdamW(groups, betas=betas, eps=eps)
    if name == 'adamw_torch_fused':
        return torch.optim.AdamW(groups, betas=betas, eps=eps, fused=True)
    if name == EIGHT_BITS:
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(groups, betas=betas, eps=eps)
    if name == 'deepspeed_fused_adam':
        from deepspeed.ops.adam import FusedAdam

        return FusedAdam(groups, betas=betas, eps=eps, adam_w_mode=True)
    if name == 'deepspeed_cpu_adam':
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(groups, betas=betas, eps=eps, adamw_mode=True)
    raise ValueError(f'unknown optimizer {name}')


def make_schedule(optimizer: torch.optim.Optimizer, kind: str, *, warmup_ratio: float, total_steps: int) -> LRScheduler:
    """Hugging Face schedule over the true number of optimizer steps; warm-up is rounded up to whole steps."""
    warmup = 0 if kind == 'constant' else math.ceil(warmup_ratio * total_steps)
    if kind in SHAPES:
        return LambdaLR(optimizer, partial(_share_of_rate, SHAPES[kind], warmup, total_steps))
    from transformers import get_scheduler

    return get_scheduler(kind, optimizer, num_warmup_steps=warmup, num_training_steps=total_steps)


def _share_of_rate(shape: Callable[[int, int, int], float], warmup: int, total: int, step: int) -> float:
    return step / warmup if step < warmup else shape(step, warmup, total)


def _constant(step: int, warmup: int, total: int) -> float:
    return 1.0


def _linear(step: int, warmup: int, total: int) -> float:
    return max(0.0, (total - step) / max(1, total - warmup))


def _cosine(step: int, warmup: int, total: int) -> float:
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * ((step - warmup) / max(1, total - warmup)))))


# The same numbers as those of transformers, whose module of schedules imports peft, and with it bitsandbytes and the
# compiler of torch where they are installed: a seventh of what it cost to start a run.
SHAPES: Mapping[str, Callable[[int, int, int], float]] = {
    'constant': _constant,
    'constant_with_warmup': _constant,
    'linear': _linear,
    'cosine': _cosine,
}


def complete_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Gives trainable parameters that no loss of this step reached the gradient that they have: zero.

    Momentum and decay go on for them, as under ZeRO, whose flat buffers know no missing gradient. A step of texts
    alone then moves a vision tower alike, however it is split.
    """
    for parameter in parameters:
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


def clip_and_norm(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Clips gradients in place (when `max_norm` is positive) and returns their norm before clipping."""
    return torch.nn.utils.clip_grad_norm_(list(parameters), max_norm if max_norm > 0 else float('inf'))
