"""The estimators against the divergence itself, on a distribution small enough to be written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from align_anything.losses.kl import KL_ESTIMATORS, adapted_kl_coeff
from tests.losses.ragged import check_gradient, flat, lists

LOGITS = torch.tensor([1.4, -1.2, 0.9, 0.1, -0.5], dtype=torch.float64)
REFERENCE = torch.tensor([-0.3, 0.2, 0.8, -1.0, 0.6], dtype=torch.float64).log_softmax(0)


def expected(name: str, logits: Tensor) -> Tensor:
    """The estimator's mean over tokens sampled from the policy; no gradient flows through the sampling."""
    policy = logits.log_softmax(0)
    return (policy.exp().detach() * KL_ESTIMATORS[name](policy, REFERENCE)).sum()


def gradient(function: object, logits: Tensor) -> Tensor:
    leaf = logits.clone().requires_grad_()
    (found,) = torch.autograd.grad(function(leaf), leaf)
    return found


def divergence(first: Tensor, second: Tensor) -> Tensor:
    return (first.exp() * (first - second)).sum()


def test_estimators_are_their_formulas() -> None:
    policy, reference = flat(lists(1)) - 2, flat(lists(2)) - 2
    p, q = np.exp(policy.numpy()), np.exp(reference.numpy())
    formulas = {'k1': np.log(p / q), 'k2': np.log(p / q) ** 2 / 2, 'k3': q / p - 1 - np.log(q / p)}
    assert set(formulas) == set(KL_ESTIMATORS)
    for name, estimator in KL_ESTIMATORS.items():
        np.testing.assert_allclose(estimator(policy, reference).numpy(), formulas[name], rtol=1e-12, atol=1e-14)
        check_gradient(lambda values, estimator=estimator: estimator(values, reference), policy)


def test_k3_of_almost_equal_policies_keeps_its_digits_in_float32() -> None:
    policy = torch.tensor([-1.0])
    found = float(KL_ESTIMATORS['k3'](policy, policy + 1e-3))
    difference = float(policy + 1e-3) - float(policy)
    assert found == pytest.approx(difference**2 / 2 + difference**3 / 6, rel=1e-3)


@pytest.mark.parametrize('name', ['k1', 'k3'])
def test_unbiased_estimators(name: str) -> None:
    exact = divergence(LOGITS.log_softmax(0), REFERENCE)
    torch.testing.assert_close(expected(name, LOGITS), exact, rtol=1e-12, atol=0)
    assert abs(float(expected('k2', LOGITS) / exact) - 1) > 0.01


def test_whose_gradient_each_estimator_has() -> None:
    exact = gradient(lambda logits: divergence(logits.log_softmax(0), REFERENCE), LOGITS)
    other = gradient(lambda logits: divergence(REFERENCE, logits.log_softmax(0)), LOGITS)
    found = {name: gradient(lambda logits, name=name: expected(name, logits), LOGITS) for name in KL_ESTIMATORS}
    torch.testing.assert_close(found['k1'], torch.zeros_like(LOGITS), rtol=0, atol=1e-15)
    torch.testing.assert_close(found['k2'], exact, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(found['k3'], other, rtol=1e-12, atol=1e-15)
    assert (exact - other).abs().max() > 0.01


def test_k1_in_the_reward_has_the_gradient_of_the_divergence() -> None:
    def penalised(logits: Tensor) -> Tensor:
        policy = logits.log_softmax(0)
        return (policy.exp().detach() * KL_ESTIMATORS['k1'](policy, REFERENCE).detach() * policy).sum()

    exact = gradient(lambda logits: divergence(logits.log_softmax(0), REFERENCE), LOGITS)
    torch.testing.assert_close(gradient(penalised, LOGITS), exact, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ('kl', 'factor'),
    # At most 0.2 off the target counts: 1 + 0.1 · clip(kl / 6 - 1, -0.2, 0.2).
    [(6.0, 1.0), (6.6, 1.01), (5.4, 0.99), (60.0, 1.02), (0.0, 0.98)],
)
def test_the_coefficient_follows_the_divergence(kl: float, factor: float) -> None:
    assert adapted_kl_coeff(0.5, kl, target=6.0) == pytest.approx(0.5 * factor, rel=1e-12)
