"""DiffusionNFT: what it makes of a rollout, its terms in float64, and how its old policy follows."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from align_anything.algorithms.nft import NFT
from align_anything.core.types import Example, Response
from align_anything.rollouts.experience import record, spread
from tests.algorithms.test_online import GROUPS, LENGTHS, SCORES, advantages
from tests.policies.denoising.toy import clean, policy_of, prompt

CPU = torch.device('cpu')
BETA, LAMBDA, DRAWS = 0.4, 0.3, 2


def test_the_best_are_right_and_the_worst_wrong() -> None:
    """r = clip(½ + A / 2c, 0, 1), of scores less the mean of their group over the deviation of all."""
    mean = sum(SCORES) / len(SCORES)
    deviation = (sum((score - mean) ** 2 for score in SCORES) / (len(SCORES) - 1)) ** 0.5 + 1e-4
    wanted = []
    for score, group, length in zip(SCORES, GROUPS, LENGTHS, strict=True):
        own = [other for other, its in zip(SCORES, GROUPS, strict=True) if its == group]
        advantage = (score - sum(own) / len(own)) / deviation
        wanted += [min(max(0.5 + advantage / (2 * 0.5), 0.0), 1.0)] * length
    found = advantages(NFT(clip_range_advantage=0.5))['optimality']
    assert found.tolist() == pytest.approx(wanted) and {*wanted} == {0.0, 1.0}


@pytest.mark.parametrize(
    ('settings', 'decays'),
    [
        ({}, {1: 0.001, 400: 0.4, 600: 0.5}),
        ({'old_decay_rate': 0.0075, 'old_decay_start': 75, 'old_decay_max': 0.999}, {75: 0.0, 100: 0.1875, 900: 0.999}),
    ],
)
def test_the_old_policy_follows_by_the_published_schedules(
    settings: dict[str, float], decays: dict[int, float]
) -> None:
    assert {rollouts: NFT(**settings).old_decay(rollouts) for rollouts in decays} == pytest.approx(decays)


def generated() -> list[Example]:
    rows = []
    for number in range(2):
        pieces = [clean(10 * number + at, DRAWS) for at in range(2)]
        responses = [Response(piece.ids, piece.weights, piece.media) for piece in pieces]
        rows.append(Example(prompt('a red cube'[: number + 4]), responses, f'row {number}'))
    spread(rows, 'optimality', torch.tensor([1.0, 0.0, 0.8, 0.3]).repeat_interleave(DRAWS))
    return rows


def test_its_terms_are_those_of_the_paper() -> None:
    """On clean samples, one draw after another, as their authors have it."""
    policy, old, reference = policy_of(contrast=BETA), policy_of(seed=1), policy_of(seed=5)
    rows, algorithm = generated(), NFT(contrast=BETA, reference_coeff=LAMBDA, clip_range_advantage=5.0)
    for name, by in (('old', old), ('reference', reference)):
        record(name, partial(torch.no_grad()(by), prediction=True), policy.collate, [rows], CPU)
    batch = policy.collate(rows)
    scored = policy(batch, prediction=True)
    terms, counts = algorithm.terms(batch, scored, {}), algorithm.counts(batch)
    assert terms.keys() == counts.keys() and {float(count) for count in counts.values()} == {4.0}
    loss, distance = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    before, start = (torch.no_grad()(by)(batch, prediction=True).prediction for by in (old, reference))
    inputs = batch.inputs
    for unit in range(4 * DRAWS):
        x, sigma, v = inputs.sample[unit], inputs.level[unit], scored.prediction[unit]
        z = x - sigma * inputs.target[unit]
        r = batch.values_of('optimality')[unit]
        for share, u in ((r, BETA * v + (1 - BETA) * before[unit]), (1 - r, (1 + BETA) * before[unit] - BETA * v)):
            error = x - sigma * u - z
            loss = loss + 5.0 * share / BETA * (error**2 / error.abs().mean().clip(min=1e-5).detach()).mean() / DRAWS
        distance = distance + (v - start[unit]).square().mean() / DRAWS
    torch.testing.assert_close(terms['policy_loss'], loss)
    torch.testing.assert_close(terms['distance'], distance)
    assert algorithm.coefficients() == {'policy_loss': 1.0, 'distance': LAMBDA}
    weights = list(policy.parameters())
    found = torch.autograd.grad(terms['policy_loss'] + LAMBDA * terms['distance'], weights, retain_graph=True)
    for own, other in zip(found, torch.autograd.grad(loss + LAMBDA * distance, weights), strict=True):
        torch.testing.assert_close(own, other)


def test_its_gradient_is_the_same_for_any_cut() -> None:
    policy, rows, algorithm = policy_of(contrast=BETA), generated(), NFT(contrast=BETA, reference_coeff=LAMBDA)
    for name, by in (('old', policy_of(seed=1)), ('reference', policy_of(seed=5))):
        record(name, partial(torch.no_grad()(by), prediction=True), policy.collate, [rows], CPU)
    gradients = []
    for cut in ([rows], [rows[:1], [], rows[1:]]):
        policy.zero_grad()
        for examples in cut:
            batch = policy.collate(examples)
            terms = algorithm.terms(batch, policy(batch), {})
            sum(weight * terms[name] for name, weight in algorithm.coefficients().items()).backward()
        gradients.append([parameter.grad.clone() for parameter in policy.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


def test_a_rank_without_responses_has_a_loss_of_zero_with_a_gradient() -> None:
    policy, algorithm = policy_of(contrast=BETA), NFT(contrast=BETA)
    batch = policy.collate([])
    terms = algorithm.terms(batch, policy(batch), {})
    terms['policy_loss'].backward()
    assert float(terms['policy_loss'].detach()) == 0 == float(algorithm.counts(batch)['policy_loss'])
    assert all(not parameter.grad.any() for parameter in policy.parameters())
