"""Policy gradients on responses that were sampled before: ratios, clipping, and what corrects for the rollout engine.

Log-probabilities are `(N,)`: `logprobs` under the policy now, `old_logprobs` under the policy that sampled the
responses, as the trainer computes it. Losses are sums over units; weights come from `losses/aggregation.py`, and a unit
without weight is never looked at. The count they are divided by is of the plain weights, also where `rollout_weights`
are multiplied in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from align_anything.losses.kl import k3
from align_anything.losses.responses import response_sums

ImportanceLevel = Literal['token', 'sequence', 'sequence_token', 'sequence_product']
LOG_RATIO_BOUND = 20.0
"""Bound of log-ratios, as in verl: past it `exp` overflows, and a clipped unit's gradient is not zero but NaN."""


@dataclass(frozen=True)
class Clip:
    """The range in which ratios count: `1 - low` to `1 + high`, and for negative advantages at most `dual`.

    Attributes:
        low, high: distances from one; a larger `high` lets unlikely tokens rise more (DAPO's clip-higher: Yu et al.,
            2025, arXiv:2503.14476, eq. 10).
        dual: bound above `1 + high` on the ratio of units whose advantage is negative, which nothing else bounds (Ye
            et al., 2020, arXiv:1912.09729, dual-clip PPO, 3 in the paper); None for none.
    """

    low: float = 0.2
    high: float = 0.2
    dual: float | None = None


def importance_ratios(
    logprobs: Tensor,
    old_logprobs: Tensor,
    weights: Tensor,
    segments: Tensor,
    num_responses: int,
    level: ImportanceLevel = 'token',
) -> Tensor:
    """How much likelier each unit has become, `(N,)`, with a gradient.

    `token` is the unit's own ratio (PPO, GRPO). `sequence` is the geometric mean over its response, the same for all of
    its units (GSPO: Zheng et al., 2025, arXiv:2507.18071, section 4.1). `sequence_token` has that value with the
    gradient of the unit's own log-probability, for advantages that differ within a response (GSPO-token, section 4.3).
    `sequence_product` is the product over the response, how much likelier all of it has become (RLOO: Ahmadian et al.,
    2024, arXiv:2402.14740, section 2, which takes the response for one action).
    Of the last three, aggregation `sequence-mean-token-mean` makes the mean over responses.
    """
    log_ratios = _log_ratios(logprobs, old_logprobs, weights)
    if level == 'sequence_product':
        log_ratios = response_sums(weights * log_ratios, segments, num_responses)[segments]
    elif level != 'token':
        lengths = response_sums(weights, segments, num_responses)
        sums = response_sums(weights * log_ratios, segments, num_responses)
        means = (sums / lengths.masked_fill(lengths == 0, 1))[segments]
        log_ratios = means if level == 'sequence' else means.detach() + (log_ratios - log_ratios.detach())
    return log_ratios.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()


def ppo_loss(ratios: Tensor, advantages: Tensor, weights: Tensor, clip: Clip) -> Tensor:
    """`-Σ w min(ρ A, clip(ρ, 1 - low, 1 + high) A)` (PPO: Schulman et al., 2017, arXiv:1707.06347, eq. 7).

    With `clip.dual` = c, a unit of negative advantage loses no more than `-c A`.

    Args:
        ratios: of `importance_ratios`, `(N,)`.
        advantages: of each unit, `(N,)`.
        weights: `(N,)`.

    Returns:
        The sum, `()`.
    """
    surrogate = torch.minimum(ratios * advantages, ratios.clamp(1 - clip.low, 1 + clip.high) * advantages)
    if clip.dual is not None:
        surrogate = torch.where(advantages < 0, torch.maximum(surrogate, clip.dual * advantages), surrogate)
    return -(weights * surrogate).sum()


def cispo_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, weights: Tensor, *, high: float, low: float = 1.0
) -> Tensor:
    """`-Σ w sg(clip(ρ, 1 - low, 1 + high)) A log p`: clips the weight of a unit, never its gradient (CISPO: MiniMax,
    2025, arXiv:2506.13585, eqs. 4 and 5).

    The paper bounds ratios from above only, which is `low` = 1. TRL's `epsilon_high` is the bound itself, `1 + high`.

    Args:
        advantages: of each unit, `(N,)`.
        weights: `(N,)`.

    Returns:
        The sum, `()`.
    """
    ratios = _log_ratios(logprobs.detach(), old_logprobs, weights).clamp(max=LOG_RATIO_BOUND).exp()
    return reinforce_loss(logprobs, ratios.clamp(1 - low, 1 + high) * advantages, weights)


def guarded_ratios(logprobs: Tensor, old_logprobs: Tensor, drift: Tensor, std: Tensor, weights: Tensor) -> Tensor:
    """Ratios of denoising steps without the bias that holds them below 1, `(N,)`: `exp(s (Δ log p + KL))`.

    GRPO-Guard (Wang et al., 2025, arXiv:2510.22319, eq. 8). The mean of the log-ratio is minus the divergence of the
    step from the one that sampled it, and its spread goes by 1 / s: with both taken out, one clip range holds for all
    steps.

    Args:
        drift: divergence of each step from the policy that sampled it, `(N,)`, with a gradient.
        std: s, the standard deviation of each step, `(N,)`.
    """
    log_ratios = std * _log_ratios(logprobs + drift, old_logprobs, weights)
    return log_ratios.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()


def trusted_loss(ratios: Tensor, advantages: Tensor, weights: Tensor, drift: Tensor, bound: float) -> Tensor:
    """`-Σ w ρ A` over denoising steps whose divergence is below the bound, or whose gradient makes it no larger.

    Flow-DPPO, which clips no ratio: a step whose divergence from the policy that sampled it is at least `bound` is left
    out where `ρ` has gone the way that its advantage pulls it.

    Args:
        ratios: `(N,)`.
        advantages: `(N,)`.
        drift: divergence of each step from the policy that sampled it, `(N,)`.

    Returns:
        The sum, `()`.
    """
    leaves = ((advantages > 0) & (ratios > 1)) | ((advantages < 0) & (ratios < 1))
    kept = ~((drift >= bound) & leaves)
    return -(weights * kept * ratios * advantages).sum()


def reinforce_loss(logprobs: Tensor, advantages: Tensor, weights: Tensor) -> Tensor:
    """`-Σ w A log p`, for responses of the policy as it is (Williams, 1992).

    Args:
        advantages: of each unit, `(N,)`.
        weights: `(N,)`.

    Returns:
        The sum, `()`.
    """
    return -(weights * advantages * logprobs).sum()


def rollout_weights(
    old_logprobs: Tensor,
    rollout_logprobs: Tensor,
    weights: Tensor,
    segments: Tensor,
    num_responses: int,
    *,
    level: Literal['token', 'sequence'] = 'token',
    cap: float,
) -> Tensor:
    """Factor of each unit's loss for that the rollout engine sampled it with other rounding than the trainer's, `(N,)`.

    Truncated importance sampling (Yao et al., 2025, "Your efficient RL framework secretly brings you off-policy RL
    training"): `min(p_trainer / p_rollout, cap)`, of the unit or of its sequence. No gradient flows through it.

    Args:
        rollout_logprobs: as the rollout engine gave them with the tokens, of the distribution it sampled from, `(N,)`.
        cap: the largest factor, above one.
    """
    log_ratios = _log_ratios(old_logprobs, rollout_logprobs, weights).detach()
    if level == 'sequence':
        log_ratios = response_sums(log_ratios, segments, num_responses)[segments]
    return log_ratios.clamp(max=LOG_RATIO_BOUND).exp().clamp(max=cap)


def policy_metrics(
    logprobs: Tensor, old_logprobs: Tensor, ratios: Tensor, advantages: Tensor, weights: Tensor, clip: Clip
) -> dict[str, Tensor]:
    """Sums over units, each `()`, to be divided by the sum of the weights over the step.

    `ratio`; `approx_kl`, by k3, of the policy that sampled from the policy now; the share of units whose gradient is
    clipped away: `clipped_low` and `clipped_high` at either end of the range, `clipped_dual` at the dual bound.
    """
    with torch.no_grad():
        log_ratios = _log_ratios(logprobs, old_logprobs, weights)
        negative = advantages < 0
        units = {
            'ratio': ratios,
            'approx_kl': k3(torch.zeros_like(log_ratios), log_ratios),
            'clipped_low': (ratios < 1 - clip.low) & negative,
            'clipped_high': (ratios > 1 + clip.high) & (advantages > 0),
        }
        if clip.dual is not None:
            units['clipped_dual'] = (ratios > clip.dual) & negative
        return {name: (weights * values).sum() for name, values in units.items()}


def _log_ratios(logprobs: Tensor, other: Tensor, weights: Tensor) -> Tensor:
    # A unit without weight may hold anything; a ratio that overflows would make its zero share not a number.
    return torch.where(weights > 0, logprobs - other, 0.0)
