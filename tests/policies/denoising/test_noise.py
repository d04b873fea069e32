"""What is sampled, and what levels weigh, in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from align_anything.core.errors import SettingsError
from align_anything.models.diffusion.process import signal_to_noise
from align_anything.policies.denoising.noise import (
    Noise,
    logit_normal_share,
    loss_weight,
    mode_share,
    sample_noise,
    shifted,
)
from tests.policies.denoising.toy import PROCESSES, SHAPE, ddpm

WIDE = torch.float64


def drawn_levels(noise: Noise, process: str, shift: float = 1.0, number: int = 4000) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    sampled = [sample_noise(noise, PROCESSES[process], shift, (1, 1), generator) for _ in range(number)]
    assert all(own.level.dtype == torch.float32 for own in sampled)
    return torch.stack([own.level for own in sampled]).double() / PROCESSES[process].highest


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Of Kolmogorov and Smirnov, of a sample and of quantiles."""
    found, wanted = found.sort().values, wanted.sort().values
    share = torch.searchsorted(wanted, found).double() / len(wanted)
    return float((share - torch.arange(1, len(found) + 1) / len(found)).abs().max())


def quantiles(number: int = 20_000) -> torch.Tensor:
    return (torch.arange(number, dtype=WIDE) + 0.5) / number


def test_shares_are_those_of_the_paper() -> None:
    u = quantiles()
    normal = torch.special.ndtri(u)
    wanted = {
        'logit_normal': 1 / (1 + (-(0.4 + 0.7 * normal)).exp()),
        'mode': 1 - u - 1.29 * (torch.cos(math.pi / 2 * u) ** 2 - 1 + u),
        'uniform': u,
    }
    torch.testing.assert_close(logit_normal_share(normal, 0.4, 0.7), wanted['logit_normal'])
    torch.testing.assert_close(mode_share(u, 1.29), wanted['mode'])
    for name, own in wanted.items():
        found = drawn_levels(Noise(timestep_sampling=name, logit_mean=0.4, logit_std=0.7), 'flow')
        assert distance(found, own) < 0.025, name
        other = wanted['uniform' if name != 'uniform' else 'mode']
        assert distance(found, other) > 0.04, name


@pytest.mark.parametrize('process', PROCESSES)
def test_auto_is_logit_normal_for_flows_and_uniform_else(process: str) -> None:
    named = 'logit_normal' if process == 'flow' else 'uniform'
    assert torch.equal(drawn_levels(Noise(), process), drawn_levels(Noise(timestep_sampling=named), process))


def test_the_shift_comes_after_the_share_and_the_settings_go_before_the_checkpoint() -> None:
    share = quantiles()
    torch.testing.assert_close(shifted(share, 3.0), 3 * share / (1 + 2 * share))
    torch.testing.assert_close(shifted(shifted(share, 3.0), 1 / 3), share)
    plain = drawn_levels(Noise(shift=1.0), 'flow', shift=9.0)
    assert torch.allclose(drawn_levels(Noise(), 'flow', shift=3.0), shifted(plain, 3.0), atol=1e-6)
    assert float(plain.mean()) == pytest.approx(0.5, abs=0.02)


def test_timesteps_of_a_ddpm_are_all_alike() -> None:
    found = (drawn_levels(Noise(), 'epsilon', shift=3.0, number=8000) * 999).round().long()
    assert len(found.unique()) > 950
    assert found.min() == 0 and found.max() == 999
    counts = torch.bincount(found // 100)
    assert counts.min() > 700 and counts.max() < 900


def test_weights_of_a_ddpm_weigh_one_error_in_noise() -> None:
    """Of predicted noise by the papers; of v and clean samples so that the same error in noise counts the same."""
    level = torch.tensor([0, 5, 400, 999], dtype=WIDE)
    snr = signal_to_noise(PROCESSES['epsilon'], level)
    alphas = torch.tensor(PROCESSES['epsilon'].alphas_cumprod, dtype=WIDE)[level.long()]
    torch.testing.assert_close(snr, alphas / (1 - alphas))
    of_noise = {
        'min_snr': torch.tensor([min(float(own), 4.0) / float(own) for own in snr], dtype=WIDE),
        'debiased': 1 / snr.clamp(1e-3, 1e3).sqrt(),
    }
    for name, wanted in of_noise.items():
        noise = Noise(weighting=name, min_snr_gamma=4.0)
        torch.testing.assert_close(loss_weight(noise, PROCESSES['epsilon'], level), wanted)
        within = snr.clamp(1e-3, 1e3) if name == 'debiased' else snr
        torch.testing.assert_close(loss_weight(noise, PROCESSES['v_prediction'], level), wanted * within / (within + 1))
        torch.testing.assert_close(loss_weight(noise, PROCESSES['sample'], level), wanted * within)


def test_min_snr_of_v_divides_by_one_more() -> None:
    level = torch.tensor([700.0], dtype=WIDE)
    snr = signal_to_noise(PROCESSES['v_prediction'], level)
    found = loss_weight(Noise(weighting='min_snr'), PROCESSES['v_prediction'], level)
    torch.testing.assert_close(found, snr.clamp(max=5) / (snr + 1))


@pytest.mark.parametrize('prediction', ['epsilon', 'v_prediction', 'sample'])
@pytest.mark.parametrize('weighting', ['min_snr', 'debiased'])
def test_zero_snr_weighs_something_finite(prediction: str, weighting: str) -> None:
    process = ddpm(prediction, zero_end=True)
    found = loss_weight(Noise(weighting=weighting), process, torch.tensor([-1.0, 0.0, 999.0], dtype=WIDE))
    assert found.isfinite().all() and (found >= 0).all()
    if weighting == 'min_snr' and prediction == 'epsilon':
        assert found[2] == 1.0


def test_weights_of_flows() -> None:
    level = torch.tensor([0.1, 0.5, 1.0], dtype=WIDE)
    cosmap = loss_weight(Noise(weighting='cosmap'), PROCESSES['flow'], level)
    torch.testing.assert_close(cosmap, torch.tensor([2 / (math.pi * own) for own in (0.82, 0.5, 1.0)], dtype=WIDE))
    found = loss_weight(Noise(weighting='inverse_sigma_squared'), PROCESSES['flow'], level)
    torch.testing.assert_close(found, torch.tensor([100.0, 4.0, 1.0], dtype=WIDE))
    assert torch.equal(loss_weight(Noise(), PROCESSES['flow'], level), torch.ones(3, dtype=WIDE))


def test_offset_and_perturbation_are_added_to_the_same_noise() -> None:
    def sampled(**settings: float) -> tuple[torch.Tensor, torch.Tensor]:
        own = sample_noise(Noise(**settings), PROCESSES['flow'], 1.0, SHAPE, torch.Generator().manual_seed(5))
        return own.noise, own.added

    noise, added = sampled()
    assert torch.equal(noise, added)
    offset, _ = sampled(noise_offset=0.1)
    moved = offset - noise
    assert torch.allclose(moved, moved[:, :1, :1].expand_as(moved), atol=1e-6) and moved.abs().max() > 0.01
    assert len(moved[:, 0, 0].unique()) == SHAPE[0]
    same, seen = sampled(input_perturbation=0.5)
    assert torch.equal(same, noise) and 0.2 < float((seen - noise).std()) < 0.8


@pytest.mark.parametrize(
    ('settings', 'process', 'words'),
    [
        ({'weighting': 'min_snr'}, 'flow', 'is a flow'),
        ({'weighting': 'debiased'}, 'flow', 'is a flow'),
        ({'weighting': 'cosmap'}, 'epsilon', 'for flows'),
        ({'weighting': 'inverse_sigma_squared'}, 'angular', 'for flows'),
        ({'shift': 3.0}, 'v_prediction', 'only the noise levels of flows'),
        ({'mode_scale': 2.0}, 'flow', 'should be from -1'),
    ],
)
def test_what_means_nothing_is_refused(settings: dict, process: str, words: str) -> None:
    Noise().check(PROCESSES[process])
    with pytest.raises(SettingsError, match=words):
        Noise(**settings).check(PROCESSES[process])
