"""Each preference loss against its formula in numpy, in float64, and its gradient against finite differences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from align_anything.losses.dpo import DPO_LOSSES, Constants, Ratios
from align_anything.losses.kto import kto_loss
from align_anything.losses.reference_free import cpo_loss, log_odds, odds_ratio_loss, simpo_loss
from align_anything.losses.responses import response_sums
from align_anything.losses.reward import bradley_terry_loss, safety_loss

CHOSEN = np.array([0.7, -2.0, 0.0, 30.0, -45.0, 3.1])
REJECTED = np.array([-0.3, 1.5, 0.0, -28.0, 50.0, 3.0])
LENGTHS = np.array([3.0, 1.0, 7.0, 40.0, 2.0, 5.0]), np.array([1.0, 4.0, 7.0, 11.0, 30.0, 6.0])
BETA, SMOOTHING, TAU = 0.3, 0.1, 0.05


def sigma(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))


def log_sigma(x: np.ndarray) -> np.ndarray:
    return -np.logaddexp(0, -x)


def formulas(c: np.ndarray, r: np.ndarray, nc: np.ndarray, nr: np.ndarray) -> dict[str, np.ndarray]:
    """The losses as their papers (and TRL) write them, `c` and `r` being the log-ratios."""
    d, e = BETA * (c - r), SMOOTHING
    mean = c / nc - r / nr
    return {
        'sigmoid': -(1 - e) * log_sigma(d) - e * log_sigma(-d),
        'sigmoid_norm': -(1 - e) * log_sigma(BETA * mean) - e * log_sigma(-BETA * mean),
        'ipo': (mean - 1 / (2 * BETA)) ** 2,
        'hinge': np.maximum(0, 1 - d),
        'robust': (-(1 - e) * log_sigma(d) + e * log_sigma(-d)) / (1 - 2 * e),
        'bco_pair': -log_sigma(BETA * c) - log_sigma(-BETA * r),
        'sppo_hard': (c - 0.5 / BETA) ** 2 + (r + 0.5 / BETA) ** 2,
        'nca_pair': -log_sigma(BETA * c) - 0.5 * log_sigma(-BETA * c) - 0.5 * log_sigma(-BETA * r),
        'exo_pair': sigma(d) * (log_sigma(d) - np.log(1 - e)) + sigma(-d) * (log_sigma(-d) - np.log(e)),
        'apo_zero': 1 - sigma(BETA * c) + sigma(BETA * r),
        'apo_down': sigma(BETA * c) + 1 - sigma(d),
        'discopop': -log_sigma(d) * (1 - sigma(d / TAU)) + np.exp(-d) * sigma(d / TAU),
    }


def tensor(values: np.ndarray) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize('name', DPO_LOSSES)
def test_losses_of_pairs_are_their_formulas(name: str) -> None:
    ratios = Ratios(tensor(CHOSEN), tensor(REJECTED), *map(tensor, LENGTHS))
    found = DPO_LOSSES[name](ratios, Constants(BETA, SMOOTHING, TAU))
    expected = formulas(CHOSEN, REJECTED, *LENGTHS)
    assert set(expected) == set(DPO_LOSSES)
    np.testing.assert_allclose(found.numpy(), expected[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('name', DPO_LOSSES)
def test_gradients_of_pair_losses(name: str) -> None:
    lengths = [tensor(values[:3]) for values in LENGTHS]
    check(
        lambda chosen, rejected: DPO_LOSSES[name](Ratios(chosen, rejected, *lengths), Constants(BETA, SMOOTHING, TAU)),
        [0.7, -2.0, 0.4],
        [-0.3, 1.5, 0.1],
    )


def check(loss: Callable[..., Tensor], *values: list[float]) -> None:
    inputs = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in values]
    assert torch.autograd.gradcheck(loss, inputs, eps=1e-6, atol=1e-7)


@pytest.mark.parametrize('name', ['sigmoid', 'sigmoid_norm', 'hinge', 'ipo', 'robust', 'bco_pair', 'apo_zero'])
def test_a_step_raises_the_chosen_and_lowers_the_rejected(name: str) -> None:
    chosen, rejected = (torch.zeros(1, dtype=torch.float64, requires_grad=True) for _ in range(2))
    one = torch.ones(1, dtype=torch.float64)
    DPO_LOSSES[name](Ratios(chosen, rejected, one, one), Constants(BETA, SMOOTHING, TAU)).sum().backward()
    assert float(chosen.grad) < 0 < float(rejected.grad)


def test_simpo_and_cpo() -> None:
    chosen, rejected = CHOSEN / 10, REJECTED / 10
    logits = 2.5 * (chosen - rejected) - 1.4
    found = simpo_loss(tensor(chosen), tensor(rejected), beta=2.5, margin=1.4)
    np.testing.assert_allclose(found.numpy(), -log_sigma(logits), rtol=1e-12)
    logits = 0.1 * (chosen - rejected)
    expected = -0.9 * log_sigma(logits) - 0.1 * log_sigma(-logits)
    found = cpo_loss(tensor(chosen), tensor(rejected), beta=0.1, label_smoothing=0.1)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
    check(lambda c, r: simpo_loss(c, r, beta=2.5, margin=1.4), [0.1, -1.0], [0.3, -2.0])


def test_odds_ratio() -> None:
    # From a response that is all but certain to one that is all but impossible.
    chosen, rejected = np.array([-1e-9, -0.1, -0.6931, -5.0, -60.0]), np.array([-3.0, -0.7, -0.2, -40.0, -1e-6])

    def odds(x: np.ndarray) -> np.ndarray:
        return x - np.log(-np.expm1(x))

    np.testing.assert_allclose(log_odds(tensor(chosen)).numpy(), odds(chosen), rtol=1e-12)
    found = odds_ratio_loss(tensor(chosen), tensor(rejected))
    np.testing.assert_allclose(found.numpy(), -log_sigma(odds(chosen) - odds(rejected)), rtol=1e-11)
    check(odds_ratio_loss, [-0.1, -0.9, -5.0], [-0.3, -0.2, -0.69])


@pytest.mark.parametrize('values', [(0.0, -1.0), (-1.0, 0.0), (0.0, 0.0)])
def test_certain_responses_have_finite_odds(values: tuple[float, float]) -> None:
    chosen, rejected = (torch.tensor([value], requires_grad=True) for value in values)
    loss = odds_ratio_loss(chosen, rejected).sum()
    loss.backward()
    assert loss.isfinite() and chosen.grad.isfinite().all() and rejected.grad.isfinite().all()


def test_kto_pulls_the_good_up_and_the_bad_down() -> None:
    ratios, labels = tensor(CHOSEN), torch.tensor([True, False, True, False, True, False])
    found = kto_loss(ratios, labels, 0.4, beta=BETA, desirable_weight=1.5, undesirable_weight=0.5)
    good, bad = 1.5 * (1 - sigma(BETA * (CHOSEN - 0.4))), 0.5 * (1 - sigma(BETA * (0.4 - CHOSEN)))
    np.testing.assert_allclose(found.numpy(), np.where(labels.numpy(), good, bad), rtol=1e-12)
    flags = torch.tensor([True, False])
    check(lambda x: kto_loss(x, flags, 0.2, beta=BETA), [0.3, -0.8])
    free = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    kto_loss(free, flags, 0.0, beta=BETA).sum().backward()
    assert free.grad[0] < 0 < free.grad[1]


def test_rewards_and_costs() -> None:
    chosen, rejected, margin = tensor(CHOSEN), tensor(REJECTED), tensor(LENGTHS[0])
    found = bradley_terry_loss(chosen, rejected, margin)
    np.testing.assert_allclose(found.numpy(), -log_sigma(CHOSEN - REJECTED - LENGTHS[0]), rtol=1e-12)
    likely = np.linspace(0, 1, len(CHOSEN))
    soft = bradley_terry_loss(chosen, rejected, margin, tensor(likely))
    lead = CHOSEN - REJECTED - LENGTHS[0]
    np.testing.assert_allclose(soft, -likely * log_sigma(lead) - (1 - likely) * log_sigma(-lead), rtol=1e-12)
    unsafe = torch.tensor([True, False, True, False, True, False])
    signs = np.where(unsafe.numpy(), 1.0, -1.0)
    np.testing.assert_allclose(safety_loss(chosen, unsafe).numpy(), -log_sigma(signs * CHOSEN), rtol=1e-12)
    check(lambda c, r: bradley_terry_loss(c, r, 0.3), [0.1, -1.0], [0.3, -2.0])
    check(lambda c, r: bradley_terry_loss(c, r, 0.0, 0.5), [0.1, -1.0], [0.3, -2.0])
    costs = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    safety_loss(costs, torch.tensor([True, False])).sum().backward()
    assert costs.grad[0] < 0 < costs.grad[1]


def test_sums_over_responses() -> None:
    values, segments = tensor(np.array([1.0, 2.0, 4.0, 8.0])), torch.tensor([0, 0, 2, 2])
    assert response_sums(values, segments, 4).tolist() == [3.0, 0.0, 12.0, 0.0]
