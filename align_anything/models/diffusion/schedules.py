"""The noise levels that a pipeline samples at, by its own scheduler."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from align_anything.core.errors import ModelError
from align_anything.models.diffusion.library import component_class

CLEAN_STEP = -1.0


def dynamic_shift(config: Mapping[str, Any], tokens: int) -> float:
    """Returns μ, which FLUX takes to be linear in the number of tokens of the latents."""
    low, high = config.get('base_image_seq_len', 256), config.get('max_image_seq_len', 4096)
    first, last = config.get('base_shift', 0.5), config.get('max_shift', 1.15)
    slope = (last - first) / (high - low)
    return tokens * slope + (first - slope * low)


def flow_levels(
    origin: Sequence[str],
    config: Mapping[str, Any],
    folder: Path,
    steps: int,
    *,
    mu: float | None = None,
    sigmas: Sequence[float] | None = None,
) -> Tensor:
    """Returns σ at each step and 0, `(steps + 1,)` float32, of a scheduler of flows.

    `sigmas` are those that the pipeline hands over to be shifted, where it does.
    """
    scheduler = component_class(origin, folder).from_config(dict(config))
    arguments: dict[str, Any] = {} if mu is None else {'mu': mu}
    if sigmas is not None:
        arguments['sigmas'] = list(sigmas)
    scheduler.set_timesteps(num_inference_steps=steps, **arguments)
    return _checked(scheduler.sigmas.float(), steps, folder)


def timestep_levels(origin: Sequence[str], config: Mapping[str, Any], folder: Path, steps: int) -> Tensor:
    """Returns the timestep of each step and -1, `(steps + 1,)` float32, of a scheduler of a DDPM."""
    scheduler = component_class(origin, folder).from_config(dict(config))
    scheduler.set_timesteps(steps)
    # Solvers of a higher order come back to the same timestep.
    own = torch.as_tensor(scheduler.timesteps).float().round().unique_consecutive()
    return _checked(torch.cat([own, own.new_tensor([CLEAN_STEP])]), steps, folder)


def as_shift(config: Mapping[str, Any], mu: float | None) -> float:
    """Returns s of σ' = sσ / (1 + (s - 1)σ), by which a scheduler shifts noise levels."""
    if mu is not None:
        return math.exp(mu) if config.get('time_shift_type', 'exponential') == 'exponential' else mu
    return float(config.get('shift') or config.get('flow_shift') or 1.0)


def _checked(levels: Tensor, steps: int, folder: Path) -> Tensor:
    if len(levels) != steps + 1:
        raise ModelError(f'{folder}/scheduler makes {len(levels) - 1} levels of {steps} steps: choose another number.')
    return levels.cpu()
