"""The objectives of published training code, written anew for the same draw: SFT, DPO, GRPO-Guard."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, mse_loss

from align_anything.algorithms.base import known_algorithms
from align_anything.core.types import Batch, Example
from align_anything.models.diffusion.prepared import LATENTS
from align_anything.policies.denoising.noise import Noise, error, sample_noise
from align_anything.policies.denoising.policy import DenoisingPolicy
from align_anything.policies.denoising.transitions import Kernel
from tests.harness.local_engine import LocalEngine
from tests.policies.denoising.test_policy import GRPO, generated, infer
from tests.policies.denoising.toy import PROCESSES, SHAPE, policy_of, row

KNOWN = known_algorithms()
NUMBER = 5


def sampled(policy: DenoisingPolicy, batch: Batch, examples: list[Example]) -> tuple[Tensor, Tensor, Tensor]:
    """Clean latents, noise and level of each unit; the noise by the policy's own seed of each row."""
    collate = policy.collate
    own = [collate._sample_noise(example, 0, SHAPE) for example in examples for _ in example.responses]
    latents = torch.stack([piece.media[LATENTS] for example in examples for piece in example.responses])
    levels = torch.stack([item.level for item in own])
    assert torch.equal(levels, batch.inputs.level)
    return latents, torch.stack([item.noise for item in own]).double(), levels.double()


def loss_of(policy: DenoisingPolicy, examples: list[Example], algorithm: Any, **roles: Any) -> tuple[float, Batch]:
    batch = policy.collate(examples)
    engine = LocalEngine(policy, torch.optim.SGD(policy.parameters(), lr=0.0))
    return engine.train_step([batch], algorithm, roles).loss, batch


def output(policy: DenoisingPolicy, batch: Batch, sample: Tensor, time: Tensor) -> Tensor:
    given = {name: value[batch.inputs.examples] for name, value in batch.inputs.conditions.items()}
    return policy.model(sample, time, guidance=1.0, **given)


def singles() -> list[Example]:
    return [row(number, responses=1) for number in range(NUMBER)]


@pytest.mark.parametrize('weighting', ['none', 'cosmap', 'inverse_sigma_squared'])
def test_sft_of_a_flow_is_that_of_the_sd3_and_flux_examples(weighting: str) -> None:
    """Their noisy input, target and weighting; the model is told the level, which theirs have times 1000."""
    policy = policy_of('flow', noise=Noise(weighting=weighting))
    loss, batch = loss_of(policy, singles(), KNOWN['sft']())
    latents, noise, sigmas = sampled(policy, batch, singles())
    sigma = sigmas[:, None, None, None]
    noisy = (1.0 - sigma) * latents + sigma * noise
    timesteps = sigmas * 1000
    predicted = output(policy, batch, noisy, timesteps / 1000)
    weights = {
        'none': torch.ones_like(sigma),
        'cosmap': 2 / (torch.pi * (1 - 2 * sigma + 2 * sigma**2)),
        'inverse_sigma_squared': (sigma**-2.0),
    }[weighting]
    wanted = torch.mean((weights * (predicted - (noise - latents)) ** 2).reshape(NUMBER, -1), 1).mean()
    assert loss == pytest.approx(float(wanted.detach()), rel=1e-6)


@pytest.mark.parametrize('gamma', [None, 5.0])
@pytest.mark.parametrize('prediction', ['epsilon', 'v_prediction'])
def test_sft_of_a_ddpm_is_that_of_the_text_to_image_example(prediction: str, gamma: float | None) -> None:
    """With their min-SNR, which divides by one more where v is predicted."""
    noise_of = Noise() if gamma is None else Noise(weighting='min_snr', min_snr_gamma=gamma)
    policy = policy_of(prediction, noise=noise_of)
    loss, batch = loss_of(policy, singles(), KNOWN['sft']())
    latents, noise, timesteps = sampled(policy, batch, singles())
    kept = torch.tensor(PROCESSES[prediction].alphas_cumprod, dtype=torch.float64)[timesteps.long()]
    root, rest = (own[:, None, None, None] for own in (kept**0.5, (1 - kept) ** 0.5))
    target = noise if prediction == 'epsilon' else root * noise - rest * latents
    predicted = output(policy, batch, root * latents + rest * noise, timesteps / 999)
    if gamma is None:
        wanted = mse_loss(predicted, target)
    else:
        snr = (root / rest).flatten() ** 2
        weights = torch.stack([snr, gamma * torch.ones_like(snr)], dim=1).min(dim=1)[0]
        weights = weights / (snr if prediction == 'epsilon' else snr + 1)
        wanted = (mse_loss(predicted, target, reduction='none').mean((1, 2, 3)) * weights).mean()
    assert loss == pytest.approx(float(wanted.detach()), rel=1e-6)


@pytest.mark.parametrize('c', [0.1, 2.0])
def test_huber_is_that_of_kohyas_scripts(c: float) -> None:
    policy = policy_of('flow', noise=Noise(huber_c=c))
    loss, batch = loss_of(policy, singles(), KNOWN['sft']())
    latents, noise, sigmas = sampled(policy, batch, singles())
    sigma = sigmas[:, None, None, None]
    predicted = output(policy, batch, (1 - sigma) * latents + sigma * noise, sigmas)
    wanted = (2 * c * (((predicted - (noise - latents)) ** 2 + c**2).sqrt() - c)).mean()
    assert loss == pytest.approx(float(wanted.detach()), rel=1e-6)
    squares = loss_of(policy_of('flow'), singles(), KNOWN['sft']())[0]
    assert 0 < loss < squares


def test_huber_keeps_its_digits_and_its_limits() -> None:
    small, c = torch.tensor([1e-9, 1e-5], dtype=torch.float64), 0.1
    assert torch.allclose(error(Noise(huber_c=c), small), small.square(), rtol=1e-6, atol=0)
    large = torch.tensor([1e8], dtype=torch.float64)
    assert torch.allclose(error(Noise(huber_c=c), large), 2 * c * large, rtol=1e-8)
    zero = torch.zeros(1, requires_grad=True)
    error(Noise(huber_c=c), zero).sum().backward()
    assert zero.grad.item() == 0


@pytest.mark.parametrize('process', ['flow', 'epsilon'])
def test_dpo_is_diffusion_dpo_with_half_of_its_beta(process: str) -> None:
    beta, policy, reference = 40.0, policy_of(process), policy_of(process, seed=5).requires_grad_(False)
    examples = [row(number) for number in range(NUMBER)]
    loss, batch = loss_of(policy, examples, KNOWN['dpo'](scale_coeff=beta / 2), reference=reference)
    latents, noise, level = sampled(policy, batch, examples)
    if process == 'flow':
        share, target = level[:, None, None, None], noise - latents
        noisy = (1 - share) * latents + share * noise
    else:
        kept = torch.tensor(PROCESSES[process].alphas_cumprod, dtype=torch.float64)[level.long()][:, None, None, None]
        noisy, target = kept**0.5 * latents + (1 - kept) ** 0.5 * noise, noise
    time = level / PROCESSES[process].highest
    errors = [(output(model, batch, noisy, time) - target).pow(2).mean((1, 2, 3)) for model in (policy, reference)]
    (model_w, model_l), (ref_w, ref_l) = ((own[::2], own[1::2]) for own in errors)
    inside = -0.5 * beta * ((model_w - model_l) - (ref_w - ref_l))
    assert float(inside.detach().abs().max()) > 0.1
    assert loss == pytest.approx(float(-logsigmoid(inside.detach()).mean()), rel=1e-6)


def test_the_noise_is_what_the_level_came_with() -> None:
    policy = policy_of('flow', noise=Noise(shift=1.0))
    item = policy.collate._sample_noise(row(0), 0, SHAPE)
    assert item.noise.shape == SHAPE and 0 < float(item.level) < 1
    other = sample_noise(policy.collate.noise, PROCESSES['flow'], 1.0, SHAPE, torch.Generator().manual_seed(1))
    assert not torch.equal(other.noise, item.noise)


def moved(kernel: Kernel) -> tuple[DenoisingPolicy, Batch, dict[str, Tensor]]:
    """A policy that has moved since it sampled, a batch of what it sampled, and what published code reads of it."""
    policy, old = policy_of('flow', kernel=kernel), policy_of('flow', kernel=kernel)
    with torch.no_grad():
        for number, parameter in enumerate(policy.parameters()):
            parameter.mul_(1.02 if number % 2 else 0.97)
    examples = generated(old)
    batch = policy.collate(examples)
    scored = infer(old, prediction=True)(batch)
    for item, own, prediction in zip(
        (piece for example in examples for piece in example.responses),
        batch.by_response(scored.values),
        batch.by_response(scored.prediction),
        strict=True,
    ):
        item.per_unit |= {'old': own, 'advantage': torch.full((item.units,), 0.0)}
        item.media['companion/old'] = prediction
    for at, item in enumerate(piece for example in examples for piece in example.responses):
        item.per_unit['advantage'] = torch.full((item.units,), (-1.0) ** at * (1 + at), dtype=torch.float64)
    batch = policy.collate(examples)
    step, x = batch.inputs.step, batch.inputs.sample
    sigma, after = (own.double()[:, None, None, None] for own in (step.level, step.next_level))
    dt = after - sigma
    start = torch.where(sigma == 1, step.first_level.double()[:, None, None, None], sigma)
    g = (sigma / (1 - start)).sqrt() * kernel.noise_level

    def mean_of(velocity: Tensor) -> Tensor:
        return x * (1 + g**2 / (2 * sigma) * dt) + velocity * (1 + g**2 * (1 - sigma) / (2 * sigma)) * dt

    new, past = mean_of(output(policy, batch, x, step.level)), mean_of(output(old, batch, x, step.level))
    std = g * (-dt).sqrt()

    def log_prob(mean: Tensor) -> Tensor:
        density = (
            -((batch.inputs.next - mean) ** 2) / (2 * std**2) - std.log() - 0.5 * torch.log(torch.tensor(2 * torch.pi))
        )
        return density.mean((1, 2, 3))

    found = {'new': log_prob(new), 'old': log_prob(past), 'std': std.flatten(), 'dt': -dt.flatten()}
    return policy, batch, found | {'drift': ((new - past) ** 2).mean((1, 2, 3)) / (2 * std.flatten() ** 2)}


def compared(policy: DenoisingPolicy, batch: Batch, wanted: Tensor, **settings: Any) -> None:
    gradients = torch.autograd.grad(wanted, list(policy.parameters()))
    engine = LocalEngine(policy, torch.optim.SGD(policy.parameters(), lr=0.0))
    result = engine.train_step([batch], GRPO(beta=0.0, loss_aggregation='token-mean', **settings))
    assert result.loss == pytest.approx(float(wanted.detach()), rel=1e-5)
    for parameter, other in zip(policy.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, other, rtol=1e-4, atol=1e-8)


def test_grpo_is_flow_grpo() -> None:
    policy, batch, own = moved(Kernel('flow_sde', 0.7))
    advantages, ratio = batch.per_unit['advantage'], (own['new'] - own['old']).exp()
    wanted = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - 2e-3, 1 + 2e-3)).mean()
    assert 0 < int(((ratio - 1).abs() > 2e-3).sum()) and ratio.std() > 1e-4
    compared(policy, batch, wanted, clip_range_ratio=2e-3)


def test_grpo_guard_is_that_of_its_paper() -> None:
    policy, batch, own = moved(Kernel('flow_sde', 0.7))
    advantages = batch.per_unit['advantage']
    ratio = ((own['new'] - own['old'] + own['drift']) * own['std']).exp()
    per_unit = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - 1e-3, 1 + 1e-3))
    wanted = (per_unit / own['dt']).mean()
    compared(policy, batch, wanted, loss_type='grpo_guard', clip_range_ratio=1e-3)


def test_flow_dppo_leaves_out_what_has_moved_too_far() -> None:
    policy, batch, own = moved(Kernel('flow_sde', 0.7))
    advantages, ratio = batch.per_unit['advantage'], (own['new'] - own['old']).exp()
    bound = float(own['drift'].detach().quantile(0.5))
    invalid = ((advantages > 0) & (ratio > 1) | (advantages < 0) & (ratio < 1)) & (own['drift'] >= bound)
    assert 0 < int(invalid.sum()) < int((own['drift'] >= bound).sum()) < len(invalid)
    wanted = (-advantages * ratio * ~invalid).mean()
    compared(policy, batch, wanted, loss_type='flow_dppo', max_drift=bound)
