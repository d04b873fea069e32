"""Denoising steps that sample: each is a Gaussian around a mean that the denoiser says, with a std that it does not.

A step goes from a level to the next one, towards clean. Samples are `(batch, …)`, numbers of them `(batch,)`. A
log-probability is the mean over the elements of a sample, not their sum, as everybody has it: ratios are roots of true
ones, which is why clip ranges of 1e-4 and less are used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from align_anything.core.errors import ModelError, SettingsError, TrainingError
from align_anything.models.diffusion.process import Process, broadcast, clean_and_noise, per_sample, wide

KernelName = Literal['flow_sde', 'dance_sde', 'cps', 'ddim']
DivergenceForm = Literal['exact', 'flow_grpo']
STEP_STD, STEP_LENGTH = 'step_std', 'step_length'
"""Per-unit values of denoising steps: the std of its transition, and how long it is, see `Step.length`."""
FLOWS_ALONE: tuple[KernelName, ...] = ('flow_sde', 'dance_sde')


@dataclass(frozen=True)
class Kernel:
    """How a denoising step samples.

    Attributes:
        name: `flow_sde` (Flow-GRPO: Liu et al., 2025, arXiv:2505.05470), `dance_sde` (DanceGRPO: Xue et al., 2025,
            arXiv:2505.07818), `cps` (coefficients-preserving sampling: Wang and Yu, 2025, arXiv:2509.05952) or `ddim`
            (Song et al., 2020, arXiv:2010.02502, with η).
        noise_level: how much noise: a, η, a and η of these; 0 is none, with which nothing is sampled.
        divergence: `exact`, or the `flow_grpo` form of SDEs, which leaves out that a step is short, see `divergence`.
    """

    name: KernelName = 'flow_sde'
    noise_level: float = 0.7
    divergence: DivergenceForm = 'exact'

    def check(self, process: Process) -> None:
        """Raises SettingsError, with every problem, for a kernel that the noising process of a model has not."""
        flow, problems = process.prediction == 'flow', []
        if self.name in FLOWS_ALONE and not flow:
            problems.append(f'the kernel {self.name} is that of a flow, and this model is none: choose ddim or cps.')
        if self.name == 'ddim' and flow:
            problems.append(f'the kernel ddim is none of a flow: choose {", ".join(FLOWS_ALONE)} or cps.')
        if self.divergence == 'flow_grpo' and self.name not in FLOWS_ALONE:
            problems.append(f'the flow_grpo form of the KL divergence is none of the kernel {self.name}: take exact.')
        if self.name == 'cps' and not 0 <= self.noise_level <= 1:
            problems.append(f'the noise level of cps is {self.noise_level:g}, but should be from 0 to 1.')
        if problems:
            raise SettingsError(problems)


@dataclass(frozen=True)
class Step:
    """Where a step begins and where it ends, `(batch,)` each.

    Attributes:
        level, next_level: of the sample before and after it.
        first_level: at which the first step of the trajectory ends, which stands for pure noise where Flow-SDE would
            divide by zero.
    """

    level: Tensor
    next_level: Tensor
    first_level: Tensor

    def length(self, process: Process) -> Tensor:
        """Returns how long it is, as a share of the way from noise to clean, `(batch,)`; |dt| of a flow."""
        return (self.level - self.next_level) / process.highest


def flow_sde_std(process: Process, step: Step, noise_level: float) -> Tensor:
    """Returns `a √(σ / (1 - σ)) √|dt|`; where σ is 1, the denominator has the first level in its place."""
    end = torch.where(step.level >= process.highest, step.first_level, step.level)
    return noise_level * (step.level / (1 - end) * step.length(process)).sqrt()


def dance_sde_std(process: Process, step: Step, noise_level: float) -> Tensor:
    """Returns `η √|dt|`."""
    return noise_level * step.length(process).sqrt()


def cps_std(process: Process, step: Step, noise_level: float) -> Tensor:
    """Returns `σ' sin(aπ / 2)`."""
    return process.coefficients(step.next_level)[1] * math.sin(noise_level * math.pi / 2)


def ddim_std(process: Process, step: Step, noise_level: float) -> Tensor:
    """Returns `η √((1 - ᾱ') / (1 - ᾱ)) √(1 - ᾱ / ᾱ')`."""
    (alpha, sigma), (next_alpha, next_sigma) = map(process.coefficients, (step.level, step.next_level))
    return noise_level * next_sigma / sigma * (1 - (alpha / next_alpha).square()).clamp(min=0).sqrt()


def sde_mean(process: Process, sample: Tensor, prediction: Tensor, step: Step, std: Tensor) -> Tensor:
    """Returns `x + v dt + std² / (2σ) (-ε̂)`: an Euler step of the SDE with the marginals of the flow.

    The score of the marginal is `-ε̂ / σ`, and `std² = g² |dt|`.
    """
    clean, noise = clean_and_noise(process, sample, prediction, step.level)
    length, pull = per_sample(step.length(process), noise), per_sample(std.square() / (2 * step.level), noise)
    return wide(sample) - length * (noise - clean) - pull * noise


def renoised_mean(process: Process, sample: Tensor, prediction: Tensor, step: Step, std: Tensor) -> Tensor:
    """Returns `α' x̂0 + √(σ'² - std²) ε̂`: with the noise of the step, as much noise as the next level has."""
    clean, noise = clean_and_noise(process, sample, prediction, step.level)
    alpha, sigma = broadcast(process, step.next_level, clean)
    return alpha * clean + (sigma.square() - per_sample(std, clean).square()).clamp(min=0).sqrt() * noise


Std = Callable[[Process, Step, float], Tensor]
Mean = Callable[[Process, Tensor, Tensor, Step, Tensor], Tensor]
KERNELS: Mapping[KernelName, tuple[Mean, Std]] = MappingProxyType(
    {
        'flow_sde': (sde_mean, flow_sde_std),
        'dance_sde': (sde_mean, dance_sde_std),
        'cps': (renoised_mean, cps_std),
        'ddim': (renoised_mean, ddim_std),
    }
)


def step_std(process: Process, kernel: Kernel, step: Step) -> Tensor:
    """Returns the standard deviation of each step, `(batch,)`; 0 where it adds no noise, as the last one does not."""
    return KERNELS[kernel.name][1](process, step, kernel.noise_level)


def step_values(process: Process, kernel: Kernel | None, step: Step | None) -> dict[str, Tensor]:
    """Returns the per-unit values of steps that are trained, `(N,)` each, nothing where units are no steps.

    Raises ModelError where there is no kernel that sampled them, TrainingError for a step without noise.
    """
    if step is None:
        return {}
    if kernel is None:
        raise ModelError('steps of a rollout are scored by the kernel that sampled them, and there is none.')
    std = step_std(process, kernel, step)
    if not bool((std > 0).all()):
        raise TrainingError(
            'a denoising step that is to be trained was taken without noise, so it has no density: the noise level '
            'must be above 0, and the window of trained steps must leave out the last step.'
        )
    return {STEP_STD: std, STEP_LENGTH: step.length(process)}


def transition(
    process: Process, kernel: Kernel, sample: Tensor, prediction: Tensor, step: Step
) -> tuple[Tensor, Tensor]:
    """Returns the mean `(batch, …)` and the standard deviation `(batch,)` of the next sample.

    With a noise level of 0 it is the step of the sampler without noise: Euler's of flows, DDIM's of a DDPM.
    """
    mean, _ = KERNELS[kernel.name]
    std = step_std(process, kernel, step)
    return mean(process, sample, prediction, step, std), std


def log_probability(value: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Returns the log-density of each value under its Gaussian, the mean over its elements, `(batch,)`.

    Raises ValueError where a std is zero: such a step was not sampled, so no window of trained steps may hold it.
    """
    if not bool((std > 0).all()):
        raise ValueError('a step without noise has no density: leave it out of what is trained')
    deviations = (wide(value) - mean).flatten(1) / std[:, None]
    return -0.5 * deviations.square().mean(1) - std.log() - 0.5 * math.log(2 * math.pi)


def entropy(std: Tensor) -> Tensor:
    """Returns the entropy of each Gaussian, the mean over its elements, `(batch,)`; the denoiser has no part in it."""
    return std.log() + 0.5 * math.log(2 * math.pi * math.e)


def divergence(mean: Tensor, other: Tensor, std: Tensor, length: Tensor | None = None) -> Tensor:
    """Returns `KL(N(mean, std²) ‖ N(other, std²))`, the mean over elements, `(batch,)`: `(mean - other)² / 2 std²`.

    With the `length` |dt| of the steps it is that times |dt|, as flow_grpo has it, which divides by g² and not by
    `std² = g² |dt|`: its coefficient of 0.04 over 10 steps is one of about 0.004 here.
    """
    exact = (mean - other).flatten(1).square().mean(1) / (2 * std.square())
    return exact if length is None else exact * length
