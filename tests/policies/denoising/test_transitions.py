"""Denoising steps in float64: against torch's Gaussians, written-out formulas, and marginals that must stay."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from align_anything.core.errors import SettingsError
from align_anything.models.diffusion.process import Process, broadcast, noised, target
from align_anything.policies.denoising.transitions import (
    Kernel,
    Step,
    divergence,
    entropy,
    log_probability,
    step_std,
    transition,
)
from tests.policies.denoising.toy import PROCESSES

SHAPE = (3, 2, 4)
KERNELS = [Kernel('flow_sde', 0.7), Kernel('dance_sde', 0.3), Kernel('cps', 0.8), Kernel('ddim', 1.0)]
PAIRS = [
    *((kernel, 'flow') for kernel in KERNELS[:3]),
    *((kernel, name) for kernel in KERNELS[2:] for name in PROCESSES if name != 'flow'),
]


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*(shape or SHAPE), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def step_of(process: Process) -> Step:
    shares = torch.tensor([[0.9, 0.8], [0.6, 0.5], [0.3, 0.25]], dtype=torch.float64)
    levels = process.level_at(shares)
    return Step(levels[:, 0], levels[:, 1], torch.full((3,), 0.95, dtype=torch.float64))


def test_flow_sde_is_that_of_flow_grpo() -> None:
    """As their code writes it, with its clause for pure noise."""
    sample, velocity = random(1), random(2)
    sigma, after = (torch.tensor(own, dtype=torch.float64) for own in ([1.0, 0.7, 0.2], [0.9, 0.6, 0.1]))
    step, process = Step(sigma, after, torch.full((3,), 0.9, dtype=torch.float64)), PROCESSES['flow']
    mean, std = transition(process, Kernel('flow_sde', 0.7), sample, velocity, step)
    for number in range(3):
        s, dt = float(sigma[number]), float(after[number] - sigma[number])
        g = math.sqrt(s / (1 - (0.9 if s == 1 else s))) * 0.7
        x, v = sample[number], velocity[number]
        wanted = x * (1 + g**2 / (2 * s) * dt) + v * (1 + g**2 * (1 - s) / (2 * s)) * dt
        torch.testing.assert_close(mean[number], wanted)
        assert float(std[number]) == pytest.approx(g * math.sqrt(-dt))
    mean, std = transition(process, Kernel('dance_sde', 0.3), sample, velocity, step)
    for number in range(3):
        s, dt = float(sigma[number]), float(after[number] - sigma[number])
        x, v = sample[number], velocity[number]
        torch.testing.assert_close(mean[number], x + (v + 0.3**2 / (2 * s) * (x + (1 - s) * v)) * dt)
        assert float(std[number]) == pytest.approx(0.3 * math.sqrt(-dt))


def test_cps_and_ddim_are_those_of_their_papers() -> None:
    sample, predicted = random(1), random(2)
    flow, step = PROCESSES['flow'], step_of(PROCESSES['flow'])
    mean, std = transition(flow, Kernel('cps', 0.8), sample, predicted, step)
    s, after = step.level[:, None, None], step.next_level[:, None, None]
    noise = after * math.sin(0.8 * math.pi / 2)
    clean, rest = sample - s * predicted, sample + (1 - s) * predicted
    torch.testing.assert_close(mean, (1 - after) * clean + (after**2 - noise**2).sqrt() * rest)
    torch.testing.assert_close(std, noise.flatten())
    process = PROCESSES['epsilon']
    step = step_of(process)
    kept = torch.tensor(process.alphas_cumprod, dtype=torch.float64)
    now, then = (kept[own.long()][:, None, None] for own in (step.level, step.next_level))
    mean, std = transition(process, Kernel('ddim', 0.6), sample, predicted, step)
    wanted = 0.6 * ((1 - then) / (1 - now) * (1 - now / then)).sqrt()
    torch.testing.assert_close(std, wanted.flatten())
    clean = (sample - (1 - now).sqrt() * predicted) / now.sqrt()
    torch.testing.assert_close(mean, then.sqrt() * clean + (1 - then - wanted**2).sqrt() * predicted)


@pytest.mark.parametrize(('kernel', 'name'), PAIRS)
def test_densities_are_those_of_torch(kernel: Kernel, name: str) -> None:
    process = PROCESSES[name]
    step = step_of(process)
    mean, std = transition(process, kernel, random(1), random(2), step)
    other, _ = transition(process, kernel, random(1), random(3), step)
    value = mean + std[:, None, None] * random(4)
    gaussian, wide = Normal(mean, std[:, None, None].expand(SHAPE)), std[:, None, None].expand(SHAPE)
    torch.testing.assert_close(log_probability(value, mean, std), gaussian.log_prob(value).mean((1, 2)))
    torch.testing.assert_close(entropy(std), gaussian.entropy().mean((1, 2)))
    wanted = kl_divergence(gaussian, Normal(other, wide)).mean((1, 2))
    torch.testing.assert_close(divergence(mean, other, std), wanted)
    torch.testing.assert_close(divergence(mean, other, std, step.length(process)), wanted * step.length(process))
    assert torch.equal(std, step_std(process, kernel, step)) and (std > 0).all()


def test_the_divergence_is_what_sampling_finds() -> None:
    mean, other = 0.3 * random(1, 1, 4), 0.3 * random(2, 1, 4)
    std = torch.tensor([0.7], dtype=torch.float64)
    values = mean + std * random(3, 200_000, 4)
    many = std.expand(len(values))
    gaps = log_probability(values, mean.expand_as(values), many) - log_probability(
        values, other.expand_as(values), many
    )
    spread = 4 * float(gaps.std()) / math.sqrt(len(gaps))
    exact = float(divergence(mean, other, std))
    assert exact > 10 * spread and float(gaps.mean()) == pytest.approx(exact, abs=spread)


def moments_after(kernel: Kernel, steps: int, first: float) -> tuple[float, float]:
    """Mean and variance at a level of 0.1, of a Gaussian in one dimension whose velocity is known.

    A step is affine in the sample, so two points tell all of it.
    """
    center, spread = 1.5, 0.6
    levels = torch.linspace(first, 0.1, steps + 1, dtype=torch.float64)
    mean, variance = (1 - first) * center, ((1 - first) * spread) ** 2 + first**2
    for now, after in zip(levels[:-1], levels[1:], strict=True):
        x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        total = ((1 - now) * spread) ** 2 + now**2
        from_mean = x - (1 - now) * center
        velocity = now / total * from_mean - center - (1 - now) * spread**2 / total * from_mean
        step = Step(now.expand(2), after.expand(2), levels[1].expand(2))
        at, std = transition(PROCESSES['flow'], kernel, x, velocity, step)
        slope = float(at[1] - at[0])
        mean, variance = float(at[0]) + slope * mean, slope**2 * variance + float(std[0]) ** 2
    return mean, variance


@pytest.mark.parametrize('kernel', [Kernel('flow_sde', 0.7), Kernel('dance_sde', 0.5), Kernel('flow_sde', 0.0)])
def test_sdes_keep_the_marginals_of_a_gaussian(kernel: Kernel) -> None:
    wanted = 0.9 * 1.5, (0.9 * 0.6) ** 2 + 0.1**2
    errors = []
    for steps in (200, 800):
        mean, variance = moments_after(kernel, steps, 0.95)
        errors.append(max(abs(mean - wanted[0]), abs(variance - wanted[1])))
    assert errors[1] < 0.01
    # Of the first order in the length of a step.
    assert errors[0] == pytest.approx(4 * errors[1], rel=0.2)


@pytest.mark.parametrize(('kernel', 'name'), [pair for pair in PAIRS if pair[0].name in ('cps', 'ddim')])
def test_renoising_leaves_as_much_noise_as_the_next_level_has(kernel: Kernel, name: str) -> None:
    """Of a right prediction: the next sample is the clean one and Gaussian noise, of the next level's amounts."""
    process = PROCESSES[name]
    step, clean, noise = step_of(process), random(1), random(2)
    sample = noised(process, clean, noise, step.level)
    mean, std = transition(process, kernel, sample, target(process, clean, noise, step.level), step)
    alpha, sigma = broadcast(process, step.next_level, clean)
    share = (mean - alpha * clean) / noise
    torch.testing.assert_close(share, share[:, :1, :1].expand_as(share))
    torch.testing.assert_close(share[:, :1, :1].square() + std[:, None, None].square(), sigma.square())


@pytest.mark.parametrize(('kernel', 'name'), PAIRS)
def test_without_noise_a_step_is_that_of_the_plain_sampler(kernel: Kernel, name: str) -> None:
    process, still = PROCESSES[name], Kernel(kernel.name, 0.0)
    step, clean, noise = step_of(process), random(1), random(2)
    sample = noised(process, clean, noise, step.level)
    mean, std = transition(process, still, sample, target(process, clean, noise, step.level), step)
    assert not std.any()
    torch.testing.assert_close(mean, noised(process, clean, noise, step.next_level))


@pytest.mark.parametrize('kernel', KERNELS[2:])
def test_the_last_step_has_no_density(kernel: Kernel) -> None:
    process = PROCESSES['flow' if kernel.name == 'cps' else 'epsilon']
    end = 0.0 if kernel.name == 'cps' else -1.0
    level = process.level_at(torch.full((3,), 0.1, dtype=torch.float64))
    step = Step(level, torch.full_like(level, end), level)
    mean, std = transition(process, kernel, random(1), random(2), step)
    assert mean.isfinite().all() and not std.any()
    with pytest.raises(ValueError, match='without noise'):
        log_probability(mean, mean, std)


def test_float32_is_near_float64() -> None:
    process, step = PROCESSES['flow'], step_of(PROCESSES['flow'])
    wide = transition(process, Kernel(), random(1), random(2), step)
    narrow_step = Step(*(own.float() for own in (step.level, step.next_level, step.first_level)))
    narrow = transition(process, Kernel(), random(1).bfloat16().float(), random(2).float(), narrow_step)
    assert narrow[0].dtype == narrow[1].dtype == torch.float32
    torch.testing.assert_close(narrow[1].double(), wide[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ('kernel', 'name', 'words'),
    [
        (Kernel('flow_sde'), 'epsilon', 'that of a flow'),
        (Kernel('dance_sde'), 'angular', 'that of a flow'),
        (Kernel('ddim'), 'flow', 'none of a flow'),
        (Kernel('cps', divergence='flow_grpo'), 'flow', 'take exact'),
        (Kernel('cps', 1.2), 'flow', 'from 0 to 1'),
    ],
)
def test_kernels_that_a_process_has_not_are_refused(kernel: Kernel, name: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        kernel.check(PROCESSES[name])
