"""RLOO and GRPO, as whole algorithms, are TRL's and plain loops, on the same numbers, in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from align_anything.algorithms.base import known_algorithms
from align_anything.algorithms.policy_gradient import PolicyGradient
from align_anything.core.types import Batch, Scored
from tests.losses.ragged import LENGTHS, flat
from tests.losses.test_trl import (
    ADVANTAGES,
    LOSS_TYPES,
    MAX_LENGTH,
    NOW,
    OLD,
    REFERENCE,
    SEGMENTS,
    WEIGHTS,
    advantages,
    inputs_of_trl,
    padded,
    theirs,
    trainer_of_trl,
)

KNOWN = known_algorithms()


def ours(name: str, **settings: Any) -> tuple[float, Tensor, dict[str, float]]:
    """The loss of an algorithm, its gradient at each unit, and its terms."""
    algorithm: PolicyGradient = KNOWN[name](ptx_coeff=0.0, **{'rollout_correction_cap': None, **settings})
    batch = Batch(
        inputs=None,
        segments=SEGMENTS,
        weights=WEIGHTS,
        num_responses=len(LENGTHS),
        examples_of_responses=torch.arange(len(LENGTHS)),
        sources=[],
        metas=[],
        per_unit={
            'old': flat(OLD),
            'rollout': flat(OLD),
            'reference': flat(REFERENCE),
            'advantage': advantages(),
        },
    )
    now = flat(NOW).requires_grad_()
    counts = algorithm.counts(batch)
    sums = algorithm.terms(batch, Scored(now, torch.zeros_like(now)), {})
    terms = {name: total / counts[name] for name, total in sums.items()}
    loss = sum(weight * terms[name] for name, weight in algorithm.coefficients().items())
    (gradient,) = torch.autograd.grad(loss, now)
    return float(loss.detach()), gradient, {name: float(value.detach()) for name, value in terms.items()}


def rloo_by_loop(low: float, high: float) -> tuple[float, list[float]]:
    """`-1/R Σ min(ρ A, clip(ρ) A)` with ρ the likelihood ratio of a whole response, and its gradient at each unit."""
    loss, gradient = 0.0, []
    for now, old, advantage in zip(NOW, OLD, ADVANTAGES, strict=True):
        ratio = math.exp(sum(now) - sum(old))
        clipped = min(max(ratio, 1 - low), 1 + high)
        loss -= min(ratio * advantage, clipped * advantage) / len(LENGTHS)
        slope = ratio * advantage if ratio * advantage <= clipped * advantage else 0.0
        gradient += [-slope / len(LENGTHS)] * len(now)
    return loss, gradient


def rloo_of_trl() -> tuple[float, Tensor]:
    pytest.importorskip('trl')
    from trl.trainer.rloo_trainer import RLOOTrainer

    logprobs = padded(NOW).requires_grad_()
    trainer = trainer_of_trl(logprobs)
    inputs = inputs_of_trl()
    inputs['old_logps'] = (inputs['old_per_token_logps'] * inputs['completion_mask']).sum(1)
    loss = RLOOTrainer._compute_loss(trainer, trainer.model, inputs)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    return float(loss.detach()), gradient[inputs['completion_mask'] > 0]


def test_rloo_takes_the_response_for_one_action() -> None:
    settings = {'clip_range_ratio': 0.2, 'clip_range_high': 0.3}
    loss, gradient, terms = ours('rloo', **settings)
    expected, slopes = rloo_by_loop(0.2, 0.3)
    assert loss == pytest.approx(expected, rel=1e-12)
    assert gradient.tolist() == pytest.approx(slopes, rel=1e-10, abs=1e-14)
    assert terms['clipped_low'] > 0 < terms['clipped_high'], 'some are clipped'
    # As well some are not, or there would be no gradient to compare.
    assert 0 < sum(slope != 0 for slope in slopes) < len(slopes)


def test_rloo_is_trls() -> None:
    expected, slopes = rloo_of_trl()
    loss, gradient, _ = ours('rloo', clip_range_ratio=0.2, clip_range_high=0.3)
    assert loss == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(gradient, slopes, rtol=1e-10, atol=1e-14)


def test_rloo_by_token_is_a_setting() -> None:
    """Every token an action of its own, with the advantage of its response, and every token alike."""
    by_token = {'importance_level': 'token', 'loss_aggregation': 'token-mean'}
    loss, gradient, _ = ours('rloo', clip_range_ratio=0.2, clip_range_high=0.3, **by_token)
    expected = 0.0
    for now, old, advantage in zip(NOW, OLD, ADVANTAGES, strict=True):
        for one, other in zip(now, old, strict=True):
            ratio = math.exp(one - other)
            expected -= min(ratio * advantage, min(max(ratio, 0.8), 1.3) * advantage) / sum(LENGTHS)
    assert loss == pytest.approx(expected, rel=1e-12)
    other = ours('rloo', clip_range_ratio=0.2, clip_range_high=0.3)[1]
    cosine = torch.nn.functional.cosine_similarity(gradient, other, dim=0)
    assert cosine < 0.99, 'the two are not the same'


def test_rloo_corrects_rollouts_by_the_response() -> None:
    """The default cap of 2 bounds the likelihood ratio of the whole response."""
    algorithm = KNOWN['rloo']()
    assert (algorithm.rollout_correction_level, algorithm.rollout_correction_cap) == ('sequence', 2.0)


@pytest.mark.parametrize('level', ['token', 'sequence'])
@pytest.mark.parametrize('loss_type', LOSS_TYPES)
def test_grpo_corrects_the_bias_of_its_kl_as_trl_does(loss_type: str, level: str) -> None:
    pytest.importorskip('trl')
    expected = theirs(loss_type=loss_type, importance_sampling_level=level, beta=0.3, use_bias_correction_kl=True)
    constant = {'constant_length': MAX_LENGTH} if loss_type == 'dr_grpo' else {}
    given = {
        'beta': 0.3,
        'clip_range_ratio': 0.2,
        'clip_range_high': 0.3,
        'importance_level': level,
        'loss_aggregation': LOSS_TYPES[loss_type],
        **constant,
    }
    loss, gradient, _ = ours('grpo', use_bias_correction_kl=True, **given)
    assert loss == pytest.approx(expected[0], rel=1e-12)
    torch.testing.assert_close(gradient, expected[1], rtol=1e-10, atol=1e-14)
    assert ours('grpo', **given)[0] != pytest.approx(loss, rel=1e-3), 'without it the loss is another'


def test_a_kl_that_is_not_there_has_no_bias() -> None:
    with pytest.raises(
        ValueError, match='use_bias_correction_kl corrects the KL divergence in the loss, but beta is 0'
    ):
        KNOWN['grpo'](beta=0.0, use_bias_correction_kl=True)
