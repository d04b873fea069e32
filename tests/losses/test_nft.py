"""DiffusionNFT's loss in float64, written out element by element as its authors' code has it, and its gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from align_anything.losses.nft import contrast, nft_loss, optimality
from tests.losses.ragged import check_gradient

N, SHAPE = 4, (2, 3)


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_their_code(
    clean: Tensor, noise: Tensor, sigma: Tensor, v: Tensor, old: Tensor, r: Tensor, beta: float
) -> Tensor:
    """One sample after another, on clean samples."""
    total = torch.zeros((), dtype=torch.float64)
    for number in range(len(clean)):
        z, s = clean[number], sigma[number]
        x = (1 - s) * z + s * noise[number]
        losses = []
        for u in (beta * v[number] + (1 - beta) * old[number], (1 + beta) * old[number] - beta * v[number]):
            predicted = x - s * u
            weight = (predicted - z).abs().mean().clip(min=1e-5).detach()
            losses.append(((predicted - z) ** 2 / weight).mean())
        total = total + 5.0 * (r[number] * losses[0] / beta + (1 - r[number]) * losses[1] / beta)
    return total


@pytest.mark.parametrize('beta', [1.0, 0.1])
def test_the_loss_is_that_of_its_authors(beta: float) -> None:
    clean, noise, old = (random(seed, N, *SHAPE) for seed in (1, 2, 3))
    sigma, advantages = torch.tensor([0.1, 0.5, 0.9, 1.0], dtype=torch.float64), 4 * random(4, N)
    weights = torch.ones(N, dtype=torch.float64)
    r = torch.tensor([min(max(0.5 + float(a) / 10, 0.0), 1.0) for a in advantages], dtype=torch.float64)
    torch.testing.assert_close(optimality(advantages), r)
    found, wanted = (random(5, N, *SHAPE).requires_grad_() for _ in range(2))
    pair = contrast(found, old, noise - clean, sigma, beta)
    loss = nft_loss(*pair, optimality(advantages), weights, beta=beta)
    other = by_their_code(clean, noise, sigma, wanted, old, r, beta)
    torch.testing.assert_close(loss, other)
    torch.testing.assert_close(*(torch.autograd.grad(own, leaf)[0] for own, leaf in ((loss, found), (other, wanted))))


def test_no_gradient_flows_through_the_scale() -> None:
    old, target, start = (random(seed, N, *SHAPE) for seed in (1, 2, 3))
    sigma = torch.full((N,), 0.4, dtype=torch.float64)

    def residuals(v: Tensor) -> Tensor:
        return 0.4 * (0.5 * v + 0.5 * old - target).flatten(1)

    def held(v: Tensor) -> Tensor:
        return (residuals(v).square().mean(1) / residuals(start).abs().mean(1)).sum()

    check_gradient(held, start)
    own, other = start.clone().requires_grad_(), start.clone().requires_grad_()
    better, _ = contrast(own, old, target, sigma, 0.5)
    torch.testing.assert_close(torch.autograd.grad(better.sum(), own)[0], torch.autograd.grad(held(other), other)[0])


def test_good_responses_pull_and_bad_ones_push() -> None:
    """At v = v_old a good response moves v to its target, a bad one away, by as much."""
    old, target = random(1, N, *SHAPE), random(2, N, *SHAPE)
    sigma, weights = torch.full((N,), 0.5, dtype=torch.float64), torch.ones(N, dtype=torch.float64)
    moves = []
    for advantage in (5.0, -5.0, 0.0):
        v = old.clone().requires_grad_()
        pair = contrast(v, old, target, sigma, 0.3)
        optimal = optimality(torch.full((N,), advantage, dtype=torch.float64))
        nft_loss(*pair, optimal, weights, beta=0.3).backward()
        moves.append(-v.grad)
    assert ((moves[0] * (target - old)) > 0).all()
    torch.testing.assert_close(moves[0], -moves[1])
    assert moves[2].abs().max() < 1e-12


def test_a_right_prediction_has_no_error_and_no_division_by_zero() -> None:
    target, sigma = random(2, N, *SHAPE), torch.full((N,), 0.5, dtype=torch.float64)
    v = target.clone().requires_grad_()
    better, worse = contrast(v, target, target, sigma, 1.0)
    (better + worse).sum().backward()
    assert not better.any() and not worse.any() and v.grad.isfinite().all()
