"""The policy losses are those of TRL's trainers, on the same numbers, in float64.

TRL's loss is a method of a trainer that reads a model's log-probabilities; here a stand-in gives both.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from align_anything.losses.aggregation import aggregation_weights
from align_anything.losses.kl import k3
from align_anything.losses.policy_gradient import (
    Clip,
    cispo_loss,
    importance_ratios,
    policy_metrics,
    ppo_loss,
    rollout_weights,
)
from tests.losses.ragged import LENGTHS, Lists, flat, lists, per_response, segments_of

pytest.importorskip('trl')

NOW, OLD, REFERENCE, ROLLOUT = lists(1, 0.4), lists(2, 0.4), lists(3, 0.4), lists(4, 0.4)
ADVANTAGES = [1.0, -2.0, -0.7, 1.5, 0.4, -1.2]
SEGMENTS, WEIGHTS = segments_of(NOW), torch.ones(sum(LENGTHS), dtype=torch.float64)
MAX_LENGTH = 9
# The name that TRL has for each of our ways to add up.
LOSS_TYPES = {'dapo': 'token-mean', 'grpo': 'sequence-mean-token-mean', 'dr_grpo': 'sequence-mean-token-sum-norm'}


def padded(rows: Lists, fill: float = -3.0) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([per_response(row) for row in rows], batch_first=True, padding_value=fill)


def inputs_of_trl(**more: Any) -> dict[str, Any]:
    mask = padded([[1.0] * length for length in LENGTHS], fill=0.0)
    ids = torch.ones_like(mask, dtype=torch.int64)
    return {
        'prompt_ids': ids[:, :1],
        'prompt_mask': ids[:, :1],
        'completion_ids': ids,
        'completion_mask': mask,
        'advantages': per_response(ADVANTAGES),
        'old_per_token_logps': padded(OLD),
        'ref_per_token_logps': padded(REFERENCE),
        'num_items_in_batch': mask.sum(),
        **more,
    }


def trainer_of_trl(logprobs: Tensor, **settings: Any) -> Any:
    """What `_compute_loss` reads of a trainer, whose model gives these log-probabilities."""
    args = {'delta': None, 'use_bias_correction_kl': False}
    own = {
        'aux_loss_enabled': False,
        'top_entropy_quantile': 1.0,
        'off_policy_mask_threshold': None,
        'importance_sampling_level': 'token',
        'loss_type': 'dapo',
        'beta': 0.0,
        'epsilon_low': 0.2,
        'epsilon_high': 0.3,
        'use_vllm': False,
        'vllm_importance_sampling_correction': False,
        'max_completion_length': MAX_LENGTH,
        '_entropy_bonus_enabled': False,
    }
    return SimpleNamespace(
        **{**own, **{name: value for name, value in settings.items() if name not in args}},
        args=SimpleNamespace(**{**args, **{name: value for name, value in settings.items() if name in args}}),
        model=SimpleNamespace(training=False),
        accelerator=SimpleNamespace(
            num_processes=1, gather=lambda values: values, reduce=lambda values, reduction: values
        ),
        _metrics={'eval': defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, torch.zeros_like(logprobs), None),
    )


def theirs(inputs: dict[str, Any] | None = None, **settings: Any) -> tuple[float, Tensor, dict[str, float]]:
    """TRL's loss, its gradient at each unit, and its metrics."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    logprobs = padded(NOW).requires_grad_()
    trainer = trainer_of_trl(logprobs, **settings)
    inputs = inputs or inputs_of_trl()
    loss = GRPOTrainer._compute_loss(trainer, trainer.model, inputs)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    metrics = {name: values[-1] for name, values in trainer._metrics['eval'].items()}
    return float(loss.detach()), gradient[inputs['completion_mask'] > 0], metrics


def advantages() -> Tensor:
    return per_response(ADVANTAGES)[SEGMENTS]


def ratios_of(now: Tensor, level: str) -> Tensor:
    return importance_ratios(now, flat(OLD), WEIGHTS, SEGMENTS, len(LENGTHS), level)


def require_same(loss: Tensor, now: Tensor, expected: tuple[float, Tensor, dict[str, float]]) -> None:
    assert float(loss.detach()) == pytest.approx(expected[0], rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(loss, now)[0], expected[1], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize('level', ['token', 'sequence'])
@pytest.mark.parametrize('loss_type', LOSS_TYPES)
def test_grpo_and_its_relatives(loss_type: str, level: str) -> None:
    expected = theirs(loss_type=loss_type, importance_sampling_level=level, beta=0.05, delta=1.5)
    now, clip = flat(NOW).requires_grad_(), Clip(low=0.2, high=0.3, dual=1.5)
    weights, count = aggregation_weights(WEIGHTS, SEGMENTS, len(LENGTHS), LOSS_TYPES[loss_type], MAX_LENGTH)
    divergence = (weights * k3(now, flat(REFERENCE))).sum()
    ratios = ratios_of(now, level)
    require_same((ppo_loss(ratios, advantages(), weights, clip) + 0.05 * divergence) / count, now, expected)
    if level == 'token':
        found = policy_metrics(now, flat(OLD), ratios, advantages(), WEIGHTS, clip)
        shares = {name: float(value) / len(WEIGHTS) for name, value in found.items()}
        assert shares['clipped_low'] == pytest.approx(expected[2]['clip_ratio/low_mean'])
        assert shares['clipped_high'] == pytest.approx(expected[2]['clip_ratio/high_mean'])
        assert shares['clipped_low'] > 0 < shares['clipped_high'] and shares['clipped_dual'] > 0


def test_cispo() -> None:
    expected = theirs(loss_type='cispo', epsilon_high=1.3)
    now = flat(NOW).requires_grad_()
    require_same(cispo_loss(now, flat(OLD), advantages(), WEIGHTS, high=0.3) / len(WEIGHTS), now, expected)


def test_truncated_importance_sampling_is_a_factor_of_the_weights() -> None:
    factors = rollout_weights(flat(OLD), flat(ROLLOUT), WEIGHTS, SEGMENTS, len(LENGTHS), cap=1.4)
    ratio = (padded(OLD) - padded(ROLLOUT)).exp().clamp(max=1.4)
    expected = theirs(
        inputs_of_trl(importance_sampling_ratio=ratio), use_vllm=True, vllm_importance_sampling_correction=True
    )
    now = flat(NOW).requires_grad_()
    loss = ppo_loss(ratios_of(now, 'token'), advantages(), WEIGHTS * factors, Clip(low=0.2, high=0.3))
    require_same(loss / len(WEIGHTS), now, expected)
