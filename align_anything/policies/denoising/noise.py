"""What is sampled for a clean sample in training, and what its error counts: noise levels, noise, loss weights.

Shares are how far a level is from clean to pure noise, from 0 to 1. Functions take and give `(batch,)`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from align_anything.core.errors import SettingsError
from align_anything.models.diffusion.process import Process, signal_to_noise

TimestepSampling = Literal['auto', 'logit_normal', 'uniform', 'mode']
Weighting = Literal['none', 'min_snr', 'debiased', 'cosmap', 'inverse_sigma_squared']
BY_SNR: tuple[Weighting, ...] = ('min_snr', 'debiased')
OF_FLOWS: tuple[Weighting, ...] = ('cosmap', 'inverse_sigma_squared')
HIGHEST_MODE_SCALE = 2 / (math.pi - 2)
LOWEST_SHARE = 5e-4
"""Below what tables of 1000 levels have; without a bound, σ⁻² of a level near zero would outweigh all others."""
SNR_RANGE = (1e-3, 1e3)
"""The ratios that `debiased` heeds: both ends of its square root are singular."""


@dataclass(frozen=True)
class Noise:
    """How noise levels and noise are sampled, and how levels weigh.

    Attributes:
        timestep_sampling: distribution of the share: `logit_normal` and `mode` (Esser et al., 2024, arXiv:2403.03206,
            section 3.1), `uniform`, or `auto`: the first for flows, the last for others.
        logit_mean, logit_std: of the normal distribution behind `logit_normal`.
        mode_scale: of `mode`, from -1 to 1.75.
        shift: s of a flow, as `shifted` has it; None is that of the checkpoint, by the shape of the latents.
        weighting: weight of the error at a level, see `loss_weight`.
        min_snr_gamma: the highest signal-to-noise ratio that `min_snr` heeds.
        huber_c: of `error`; None for squares.
        noise_offset: scale of further noise that is the same at all positions of a channel.
        input_perturbation: scale of further noise that the denoiser sees and need not predict (Ning et al., 2023,
            arXiv:2301.11706).
    """

    timestep_sampling: TimestepSampling = 'auto'
    logit_mean: float = 0.0
    logit_std: float = 1.0
    mode_scale: float = 1.29
    shift: float | None = None
    weighting: Weighting = 'none'
    min_snr_gamma: float = 5.0
    huber_c: float | None = None
    noise_offset: float = 0.0
    input_perturbation: float = 0.0

    def check(self, process: Process) -> None:
        """Raises SettingsError, with every problem, for what means nothing with the noising process of a model."""
        flow, problems = process.prediction == 'flow', []
        if self.weighting in BY_SNR and flow:
            problems.append(
                f'diffusion_cfgs.loss_weighting: {self.weighting} weighs by the signal-to-noise ratio of a DDPM, and '
                f'this model is a flow; choose none or {" or ".join(OF_FLOWS)}.'
            )
        if self.weighting in OF_FLOWS and not flow:
            problems.append(
                f'diffusion_cfgs.loss_weighting: {self.weighting} is for flows, and this model predicts '
                f'{process.prediction}; choose none or {" or ".join(BY_SNR)}.'
            )
        if self.shift is not None and not flow:
            problems.append(
                'diffusion_cfgs.timestep_shift: only the noise levels of flows are shifted, and this model predicts '
                f'{process.prediction}; leave it out.'
            )
        if not -1 <= self.mode_scale <= HIGHEST_MODE_SCALE:
            problems.append(
                f'diffusion_cfgs.timestep_mode_scale: {self.mode_scale:g} should be from -1 to {HIGHEST_MODE_SCALE:.3f}'
            )
        if problems:
            raise SettingsError(problems)


@dataclass(frozen=True)
class SampledNoise:
    """A level `()` float32, the noise to predict and the noise to add, float32 of the shape of the clean sample."""

    level: Tensor
    noise: Tensor
    added: Tensor


def sample_noise(
    noise: Noise,
    process: Process,
    shift: float,
    shape: Sequence[int],
    generator: torch.Generator,
    channel_dim: int = 0,
) -> SampledNoise:
    """Samples for one clean sample of `shape`, whose channels are dimension `channel_dim`.

    `shift` is that of the checkpoint for this shape.
    """
    share = _share(noise, process, generator)
    if process.prediction == 'flow':
        share = shifted(share, shift if noise.shift is None else noise.shift)
    level = process.level_at(share.clamp(min=LOWEST_SHARE)).float()
    own = torch.randn(tuple(shape), generator=generator)
    if noise.noise_offset:
        one = [size if dim == channel_dim else 1 for dim, size in enumerate(shape)]
        same = torch.randn(one, generator=generator)
        own = own + noise.noise_offset * same
    added = own
    if noise.input_perturbation:
        added = own + noise.input_perturbation * torch.randn(tuple(shape), generator=generator)
    return SampledNoise(level, own, added)


def noise_at(process: Process, share: float, shape: Sequence[int], generator: torch.Generator) -> SampledNoise:
    """Samples noise for one clean sample of `shape` at the level of a `share` that is given."""
    noise = torch.randn(tuple(shape), generator=generator)
    return SampledNoise(process.level_at(torch.tensor(share, dtype=torch.float64)).float(), noise, noise)


def _share(noise: Noise, process: Process, generator: torch.Generator) -> Tensor:
    sampling = noise.timestep_sampling
    if sampling == 'logit_normal' or (sampling == 'auto' and process.prediction == 'flow'):
        normal = torch.randn((), generator=generator, dtype=torch.float64)
        return logit_normal_share(normal, noise.logit_mean, noise.logit_std)
    uniform = torch.rand((), generator=generator, dtype=torch.float64)
    return mode_share(uniform, noise.mode_scale) if sampling == 'mode' else uniform


def logit_normal_share(normal: Tensor, mean: float, std: float) -> Tensor:
    """Returns the share of a standard normal number: the sigmoid of `mean + std n`."""
    return torch.sigmoid(mean + std * normal)


def mode_share(uniform: Tensor, scale: float) -> Tensor:
    """Returns `1 - u - s (cos²(πu / 2) - 1 + u)` of a uniform number u (Esser et al., 2024, eq. 20)."""
    return 1 - uniform - scale * ((math.pi * uniform / 2).cos().square() - 1 + uniform)


def shifted(share: Tensor, shift: float) -> Tensor:
    """Returns `sσ / (1 + (s - 1)σ)`: with s above 1, larger latents get more noise (Esser et al., 2024, eq. 23)."""
    return shift * share / (1 + (shift - 1) * share)


def error(noise: Noise, difference: Tensor) -> Tensor:
    """Returns what each element of `target - prediction` counts: its square d², or with `huber_c` the pseudo-Huber.

    That is `2c (√(d² + c²) - c)`, near d² for small differences and `2c |d|` for large ones, so that outliers weigh
    less (Charbonnier et al., 1997; with this factor as in the scripts of kohya).
    """
    if noise.huber_c is None:
        return difference.square()
    # d² / (√(d² + c²) + c), where the difference of the roots would lose its digits.
    square, c = difference.square(), noise.huber_c
    return 2 * c * square / ((square + c * c).sqrt() + c)


def loss_weight(noise: Noise, process: Process, level: Tensor) -> Tensor:
    """Returns the weight of the squared error of what the denoiser predicts at each level, `(batch,)`.

    `min_snr` is `min(SNR, γ) / SNR` of predicted noise (Hang et al., 2023, arXiv:2303.09556), `debiased` its
    `1 / √SNR` (Yu et al., 2023, arXiv:2310.08442). Where clean samples or v are predicted, both become what weighs
    the same error in noise alike: times SNR, or times `SNR / (SNR + 1)`, so that `min_snr` of v is `min(SNR, γ) /
    (SNR + 1)`. Of flows, `cosmap` is `2 / (π (1 - 2σ + 2σ²))` and `inverse_sigma_squared` σ⁻², which diffusers calls
    sigma_sqrt.
    """
    if noise.weighting == 'none':
        return torch.ones_like(level)
    if noise.weighting == 'cosmap':
        return 2 / (math.pi * (1 - 2 * level + 2 * level.square()))
    if noise.weighting == 'inverse_sigma_squared':
        return level.pow(-2)
    snr = signal_to_noise(process, level)
    if noise.weighting == 'debiased':
        snr = snr.clamp(*SNR_RANGE)
        heeded = snr.sqrt()
    else:
        heeded = snr.clamp(max=noise.min_snr_gamma)
    if process.prediction == 'sample':
        return heeded
    if process.prediction == 'v_prediction':
        return heeded / (snr + 1)
    # At the end of a schedule with zero SNR both are zero, and their ratio is one.
    return torch.where(snr > 0, heeded / snr.clamp(min=torch.finfo(snr.dtype).tiny), 1.0)
