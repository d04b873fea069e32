"""Noising processes: what is between clean latents and noise, and what of it a denoiser predicts. Pure functions.

A level says how noisy a sample is: of a flow the share of noise σ, above 0 and up to 1; of a DDPM the number of the
timestep; of EDM-like models the angle, from 0 to π/2. Levels are `(batch,)`, samples `(batch, …)`. All is computed in
float32, or in float64 where samples are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from align_anything.core.errors import ModelError
from align_anything.models.diffusion.library import require_diffusers

Prediction = Literal['flow', 'epsilon', 'v_prediction', 'sample']


class Process(Protocol):
    """How clean latents become noise, and back. Picklable.

    Attributes:
        prediction: what the denoiser predicts.
        highest: the level of pure noise.
    """

    prediction: Prediction
    highest: float

    def coefficients(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Returns α and σ of `x = α z + σ ε`, `(batch,)` each, in the type of `level`."""
        ...

    def level_at(self, share: Tensor) -> Tensor:
        """Returns the level at a share of the way from clean to noise, 0 to 1, `(batch,)`."""
        ...


@dataclass(frozen=True)
class Flow:
    """Rectified flow (Liu et al., 2022): `x = (1 - σ) z + σ ε`; predicts the velocity `ε - z`."""

    prediction: Prediction = 'flow'
    highest: float = 1.0

    def coefficients(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Returns `1 - σ` and `σ`."""
        return 1 - level, level

    def level_at(self, share: Tensor) -> Tensor:
        """Returns the share itself."""
        return share


@dataclass(frozen=True)
class DDPM:
    """Denoising diffusion (Ho et al., 2020): `x = √ᾱ z + √(1 - ᾱ) ε` at a timestep.

    Attributes:
        alphas_cumprod: ᾱ of each timestep.
        prediction: `epsilon`, `v_prediction` (Salimans and Ho, 2022) or `sample`.
    """

    alphas_cumprod: tuple[float, ...]
    prediction: Prediction = 'epsilon'

    @property
    def highest(self) -> float:
        """The number of the last timestep."""
        return float(len(self.alphas_cumprod) - 1)

    def coefficients(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Returns `√ᾱ` and `√(1 - ᾱ)`; -1 is the level of clean latents."""
        table = torch.tensor((*self.alphas_cumprod, 1.0), dtype=torch.float64, device=level.device)
        kept = table[level.round().long()]
        return kept.sqrt().to(level.dtype), (1 - kept).sqrt().to(level.dtype)

    def level_at(self, share: Tensor) -> Tensor:
        """Returns the timestep, every one as likely as another for shares that are uniform in [0, 1)."""
        count = len(self.alphas_cumprod)
        return (share * count).floor().clamp(0, count - 1)


@dataclass(frozen=True)
class Angular:
    """The process of EDM-like models that predict `v` (StableAudio): `x = cos(φ) z + sin(φ) ε` at an angle φ."""

    prediction: Prediction = 'v_prediction'
    highest: float = math.pi / 2

    def coefficients(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Returns `cos(φ)` and `sin(φ)`."""
        return level.cos(), level.sin()

    def level_at(self, share: Tensor) -> Tensor:
        """Returns the angle."""
        return share * self.highest


def noised(process: Process, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
    """Returns samples at `level` `(batch,)` between `clean` and `noise`, `(batch, …)`."""
    clean, noise = wide(clean), wide(noise)
    alpha, sigma = broadcast(process, level, clean)
    return alpha * clean + sigma * noise


def target(process: Process, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
    """Returns what the denoiser should predict of samples at `level`, `(batch, …)`."""
    clean, noise = wide(clean), wide(noise)
    if process.prediction == 'flow':
        return noise - clean
    if process.prediction == 'epsilon':
        return noise
    if process.prediction == 'sample':
        return clean
    alpha, sigma = broadcast(process, level, clean)
    return alpha * noise - sigma * clean


def clean_and_noise(process: Process, sample: Tensor, prediction: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    """Returns what a prediction says of the clean latents and the noise in `sample`, `(batch, …)` each."""
    sample, prediction = wide(sample), wide(prediction)
    alpha, sigma = broadcast(process, level, sample)
    if process.prediction == 'flow':
        return sample - sigma * prediction, sample + alpha * prediction
    if process.prediction == 'epsilon':
        return (sample - sigma * prediction) / alpha, prediction
    if process.prediction == 'sample':
        return prediction, (sample - alpha * prediction) / sigma
    return alpha * sample - sigma * prediction, sigma * sample + alpha * prediction


def signal_to_noise(process: Process, level: Tensor) -> Tensor:
    """Returns `(α / σ)²` of each level, `(batch,)`; infinite for clean latents."""
    alpha, sigma = process.coefficients(level)
    return (alpha / sigma).square()


def process_of(scheduler: Mapping[str, Any], folder: str) -> Process:
    """Returns the process of a checkpoint by its scheduler_config.json.

    Raises ModelError for a scheduler whose process is not known.
    """
    name = str(scheduler.get('_class_name', ''))
    if 'FlowMatch' in name or scheduler.get('prediction_type') == 'flow_prediction':
        return Flow()
    if name == 'CosineDPMSolverMultistepScheduler':
        return Angular()
    diffusers = require_diffusers()
    kind = getattr(diffusers, name) if name in dir(diffusers) else None
    if kind is None or 'beta_schedule' not in scheduler:
        raise ModelError(f'{folder}/scheduler: the noising process of {name or "a nameless scheduler"} is not known.')
    # Built by its own class, because some of them change the table (zero SNR at the end, a shift of the SNR).
    table = kind.from_config(dict(scheduler)).alphas_cumprod
    return DDPM(tuple(float(kept) for kept in table), scheduler.get('prediction_type', 'epsilon'))


def wide(tensor: Tensor) -> Tensor:
    """Returns a tensor in float32, or as it is in float64."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def broadcast(process: Process, level: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Returns α and σ at levels `(batch,)` in the type and number of dimensions of samples `like` `(batch, …)`."""
    alpha, sigma = process.coefficients(level)
    return per_sample(alpha, like), per_sample(sigma, like)


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Returns numbers `(batch,)` in the type and number of dimensions of samples `like` `(batch, …)`."""
    return values.view(-1, *[1] * (like.ndim - 1)).to(like.dtype)
