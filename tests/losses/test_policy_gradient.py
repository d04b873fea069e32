"""Policy losses against loops over lists, in float64, and their gradients against finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from align_anything.losses.aggregation import aggregation_weights
from align_anything.losses.policy_gradient import (
    Clip,
    cispo_loss,
    importance_ratios,
    policy_metrics,
    ppo_loss,
    reinforce_loss,
    rollout_weights,
)
from tests.losses.ragged import LENGTHS, WEIGHTS, Lists, check_gradient, cut, cuts, flat, lists, segments_of

NOW, OLD, ADVANTAGES = lists(1, 0.4), lists(2, 0.4), lists(3)
CLIP = Clip(low=0.2, high=0.3, dual=1.5)
LEVELS = ('token', 'sequence', 'sequence_token', 'sequence_product')
MODES = ('token-mean', 'sequence-mean-token-mean', 'sequence-mean-token-sum-norm')
MAX_LENGTH = 7


def ratios_by_loop(level: str) -> Lists:
    found = []
    for now, old, weights in zip(NOW, OLD, WEIGHTS, strict=True):
        logs = [a - b if weight else 0.0 for a, b, weight in zip(now, old, weights, strict=True)]
        if level != 'token':
            total = sum(weight * log for weight, log in zip(weights, logs, strict=True))
            logs = [total if level == 'sequence_product' else total / max(sum(weights), 1.0)] * len(logs)
        found.append([math.exp(log) for log in logs])
    return found


def ppo_by_loop(ratio: float, advantage: float, clip: Clip) -> float:
    held = min(max(ratio, 1 - clip.low), 1 + clip.high)
    surrogate = min(ratio * advantage, held * advantage)
    if clip.dual is not None and advantage < 0:
        surrogate = max(surrogate, clip.dual * advantage)
    return -surrogate


def weighted(values: Lists, weights: Lists = WEIGHTS) -> float:
    return sum(w * value for row, own in zip(values, weights, strict=True) for value, w in zip(row, own, strict=True))


def each(function: Callable[..., float], *rows: Lists) -> Lists:
    return [[function(*values) for values in zip(*parallel, strict=True)] for parallel in zip(*rows, strict=True)]


def ratios_of(now: Tensor, old: Tensor, numbers: list[int], level: str) -> Tensor:
    own = cut(WEIGHTS, numbers)
    # An empty micro-batch has one response without units.
    return importance_ratios(now, old, flat(own), segments_of(own), max(len(numbers), 1), level)


@pytest.mark.parametrize('level', LEVELS)
def test_ratios(level: str) -> None:
    found = ratios_of(flat(NOW), flat(OLD), list(range(len(LENGTHS))), level)
    torch.testing.assert_close(found, flat(ratios_by_loop(level)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('dual', [None, 1.5])
@pytest.mark.parametrize('level', LEVELS)
def test_ppo_whatever_the_cut(level: str, dual: float | None) -> None:
    clip = Clip(low=0.2, high=0.3, dual=dual)
    losses = each(lambda ratio, advantage: ppo_by_loop(ratio, advantage, clip), ratios_by_loop(level), ADVANTAGES)
    whole = None
    for batches in cuts():
        now = flat(NOW).requires_grad_()
        total, start = torch.zeros((), dtype=torch.float64), 0
        for numbers in batches:
            stop = start + sum(LENGTHS[number] for number in numbers)
            ratios = ratios_of(now[start:stop], flat(cut(OLD, numbers)), numbers, level)
            total = total + ppo_loss(ratios, flat(cut(ADVANTAGES, numbers)), flat(cut(WEIGHTS, numbers)), clip)
            start = stop
        assert float(total.detach()) == pytest.approx(weighted(losses), rel=1e-12)
        (gradient,) = torch.autograd.grad(total, now)
        whole = gradient if whole is None else whole
        torch.testing.assert_close(gradient, whole, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize('level', ['token', 'sequence'])
def test_gradients_of_ppo(level: str) -> None:
    everything = list(range(len(LENGTHS)))
    fixed = flat(OLD), everything, level
    check_gradient(
        lambda now: ppo_loss(ratios_of(now, *fixed), flat(ADVANTAGES), flat(WEIGHTS), CLIP),
        flat(NOW),
    )


def test_gspo_token_has_the_gradient_of_gspo_where_a_response_has_one_advantage() -> None:
    segments, weights = segments_of(WEIGHTS), flat(WEIGHTS)
    advantages = torch.tensor([1.0, -2.0, 0.5, 1.5, 3.0, -1.0], dtype=torch.float64)[segments]
    means, _ = aggregation_weights(weights, segments, len(LENGTHS), 'sequence-mean-token-mean')
    gradients = []
    for level in ('sequence', 'sequence_token'):
        now = flat(NOW).requires_grad_()
        ratios = ratios_of(now, flat(OLD), list(range(len(LENGTHS))), level)
        gradients.append(torch.autograd.grad(ppo_loss(ratios, advantages, means, CLIP), now)[0])
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-14)
    assert gradients[0].abs().max() > 0


def test_gspo_token_differs_where_advantages_do() -> None:
    # ∂/∂log p_t of -Σ s A_t is -s A_t for GSPO-token; for GSPO the mean of the advantages instead of A_t.
    now = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    weights, segments = torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)
    for level, expected in (('sequence_token', [-1.0, -3.0]), ('sequence', [-2.0, -2.0])):
        ratios = importance_ratios(now, torch.zeros_like(now), weights, segments, 1, level)
        loss = ppo_loss(ratios, torch.tensor([1.0, 3.0], dtype=torch.float64), weights, Clip())
        assert torch.autograd.grad(loss, now)[0].tolist() == expected


def slope(ratio: float, advantage: float, clip: Clip) -> float:
    """Derivative of one unit's loss by its ratio."""
    ratios = torch.tensor([ratio], dtype=torch.float64, requires_grad=True)
    one = torch.ones(1, dtype=torch.float64)
    (found,) = torch.autograd.grad(ppo_loss(ratios, advantage * one, one, clip), ratios)
    return float(found)


def test_a_step_follows_the_advantage_until_the_range_ends() -> None:
    clip = Clip(low=0.2, high=0.3, dual=3.0)
    assert slope(1.0, 2.0, clip) == -2.0 and slope(1.0, -2.0, clip) == 2.0
    # Too far already: up with a positive advantage, down with a negative one.
    assert slope(1.31, 2.0, clip) == 0.0 and slope(0.79, -2.0, clip) == 0.0
    # The way back is free, but for what dual clipping holds.
    assert slope(0.5, 2.0, clip) == -2.0 and slope(2.9, -2.0, clip) == 2.0
    assert slope(3.1, -2.0, clip) == 0.0 and slope(3.1, -2.0, Clip(low=0.2, high=0.3)) == 2.0


def test_cispo() -> None:
    ratios = ratios_by_loop('token')
    for low, high in ((1.0, 0.3), (0.2, 0.3)):
        held = [[min(max(ratio, 1 - low), 1 + high) for ratio in row] for row in ratios]
        losses = each(lambda ratio, advantage, log: -ratio * advantage * log, held, ADVANTAGES, NOW)
        for batches in cuts():
            found = sum(
                cispo_loss(*(flat(cut(rows, numbers)) for rows in (NOW, OLD, ADVANTAGES, WEIGHTS)), high=high, low=low)
                for numbers in batches
            )
            assert float(found) == pytest.approx(weighted(losses), rel=1e-12)
    # The clipped units too have a gradient, and none flows through their ratios.
    now = flat(NOW).requires_grad_()
    (gradient,) = torch.autograd.grad(cispo_loss(now, flat(OLD), flat(ADVANTAGES), flat(WEIGHTS), high=0.3), now)
    held = [[min(ratio, 1.3) for ratio in row] for row in ratios]
    expected = each(lambda ratio, advantage, weight: -weight * ratio * advantage, held, ADVANTAGES, WEIGHTS)
    torch.testing.assert_close(gradient, flat(expected), rtol=1e-12, atol=1e-14)
    assert any(ratio > 1.3 for row in ratios for ratio in row)


def test_reinforce() -> None:
    losses = each(lambda advantage, log: -advantage * log, ADVANTAGES, NOW)
    for batches in cuts():
        found = sum(
            reinforce_loss(*(flat(cut(rows, numbers)) for rows in (NOW, ADVANTAGES, WEIGHTS))) for numbers in batches
        )
        assert float(found) == pytest.approx(weighted(losses), rel=1e-12)
    check_gradient(lambda now: reinforce_loss(now, flat(ADVANTAGES), flat(WEIGHTS)), flat(NOW))


def test_on_policy_all_token_losses_have_the_gradient_of_reinforce() -> None:
    weights, advantages = flat(WEIGHTS), flat(ADVANTAGES)
    everything = list(range(len(LENGTHS)))
    losses = (
        lambda now: reinforce_loss(now, advantages, weights),
        lambda now: ppo_loss(ratios_of(now, flat(NOW), everything, 'token'), advantages, weights, CLIP),
        lambda now: ppo_loss(ratios_of(now, flat(NOW), everything, 'sequence_token'), advantages, weights, CLIP),
        lambda now: cispo_loss(now, flat(NOW), advantages, weights, high=0.3),
    )
    for loss in losses:
        now = flat(NOW).requires_grad_()
        (gradient,) = torch.autograd.grad(loss(now), now)
        torch.testing.assert_close(gradient, -weights * advantages, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize('cap', [1.2, 50.0])
def test_rollout_weights_are_capped_and_bear_no_gradient(cap: float) -> None:
    rollout, segments, weights = flat(OLD), segments_of(WEIGHTS), flat(WEIGHTS)
    trainer = flat(NOW).requires_grad_()
    tokens = [[min(ratio, cap) for ratio in row] for row in ratios_by_loop('token')]
    sequences = []
    for now, old, own in zip(NOW, OLD, WEIGHTS, strict=True):
        log = sum(weight * (a - b) for a, b, weight in zip(now, old, own, strict=True))
        sequences.append([min(math.exp(log), cap)] * len(now))
    for level, expected in (('token', tokens), ('sequence', sequences)):
        found = rollout_weights(trainer, rollout, weights, segments, len(LENGTHS), level=level, cap=cap)
        torch.testing.assert_close(found, flat(expected), rtol=1e-12, atol=1e-12)
        assert not found.requires_grad


@pytest.mark.parametrize('mode', MODES)
def test_aggregation_whatever_the_cut(mode: str) -> None:
    losses = lists(7)
    trained = [row for row in WEIGHTS if sum(row)]
    if mode == 'token-mean':
        expected = weighted(losses) / weighted(WEIGHTS)
    else:
        # The mean over responses of a mean over their tokens, or of a sum over a constant.
        own = [weighted([row], [weights]) / (sum(weights) or 1.0) for row, weights in zip(losses, WEIGHTS, strict=True)]
        if mode == 'sequence-mean-token-sum-norm':
            own = [weighted([row], [weights]) / MAX_LENGTH for row, weights in zip(losses, WEIGHTS, strict=True)]
        expected = sum(own) / len(trained)
    for batches in cuts():
        total = count = 0.0
        for numbers in batches:
            weights = cut(WEIGHTS, numbers)
            found, own_count = aggregation_weights(
                flat(weights), segments_of(weights), max(len(numbers), 1), mode, MAX_LENGTH
            )
            total += float((found * flat(cut(losses, numbers))).sum())
            count += float(own_count)
        assert total / count == pytest.approx(expected, rel=1e-12)


def test_a_constant_length_must_be_given() -> None:
    with pytest.raises(ValueError, match='max_length'):
        aggregation_weights(torch.ones(1), torch.zeros(1, dtype=torch.int64), 1, 'sequence-mean-token-sum-norm')


def test_metrics_count_what_is_clipped() -> None:
    ratios = [[0.7, 0.7, 1.0, 1.4], [1.4, 1.6, 9.0, 9.0]]
    advantages = [[1.0, -1.0, 1.0, 1.0], [-1.0, -1.0, -1.0, 1.0]]
    weights = [[1.0] * 4, [1.0, 1.0, 1.0, 0.0]]
    logs, segments = flat(ratios).log(), segments_of(ratios)
    nothing = torch.zeros_like(logs)
    own = importance_ratios(logs, nothing, flat(weights), segments, 2)
    found = policy_metrics(logs, nothing, own, flat(advantages), flat(weights), CLIP)
    counted = flat(ratios)[flat(weights) > 0].tolist()
    assert {name: float(value) for name, value in found.items()} == pytest.approx(
        {
            'ratio': sum(counted),
            'approx_kl': sum(ratio - 1 - math.log(ratio) for ratio in counted),
            'clipped_low': 1.0,
            'clipped_high': 1.0,
            'clipped_dual': 2.0,
        },
        rel=1e-12,
    )
    assert 'clipped_dual' not in policy_metrics(logs, nothing, own, flat(advantages), flat(weights), Clip())


@pytest.mark.parametrize('level', LEVELS)
def test_units_that_are_far_off_or_without_weight_leave_the_gradient_finite(level: str) -> None:
    # e^200 overflows in float32; the third unit belongs to a filler, the fourth to a response of its own.
    now = torch.tensor([200.0, -200.0, 300.0, 0.1], requires_grad=True)
    weights, segments = torch.tensor([1.0, 1.0, 0.0, 1.0]), torch.tensor([0, 1, 2, 3])
    ratios = importance_ratios(now, torch.zeros(4), weights, segments, 4, level)
    metrics = policy_metrics(now, torch.zeros(4), ratios, torch.ones(4), weights, Clip())
    for advantages in (torch.ones(4), -torch.ones(4)):
        loss = ppo_loss(ratios, advantages, weights, Clip())
        (gradient,) = torch.autograd.grad(loss, now, retain_graph=True)
        assert loss.isfinite() and gradient.isfinite().all()
        assert gradient[2] == 0 != gradient[3]
    assert metrics['ratio'].isfinite()
    factors = rollout_weights(now, torch.zeros(4), weights, segments, 4, cap=2.0)
    assert factors[0] == 2.0 and factors[2] == 1.0
