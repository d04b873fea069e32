"""Preference losses without a reference model."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def simpo_loss(chosen: Tensor, rejected: Tensor, *, beta: float, margin: float, label_smoothing: float = 0.0) -> Tensor:
    """SimPO: `-log σ(β (chosen - rejected) - γ)` (Meng et al., 2024, arXiv:2405.14734, eq. 6).

    Args:
        chosen, rejected: mean log-probability of the tokens of each response, `(pairs,)`.
        beta: scale of the rewards; `margin` is γ, the least difference of two rewards.

    Returns:
        One loss for each pair, `(pairs,)`.
    """
    logits = beta * (chosen - rejected) - margin
    return -(1 - label_smoothing) * logsigmoid(logits) - label_smoothing * logsigmoid(-logits)


def cpo_loss(chosen: Tensor, rejected: Tensor, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """CPO's preference term: DPO with a uniform reference (Xu et al., 2024, arXiv:2401.08417, eq. 5).

    Args:
        chosen, rejected: sum of the log-probabilities of each response, `(pairs,)`.

    Returns:
        One loss for each pair, `(pairs,)`.
    """
    return simpo_loss(chosen, rejected, beta=beta, margin=0.0, label_smoothing=label_smoothing)


def log_odds(logprobs: Tensor) -> Tensor:
    """`log(p / (1 - p))` of a mean log-probability, elementwise."""
    # Tokens that are all but certain round to zero, whose odds would be infinite and their gradient not a number.
    logprobs = logprobs.clamp(max=-torch.finfo(logprobs.dtype).eps)
    # log(1 - e^x) by the stable branch of each range (Mächler, 2012).
    middle = -math.log(2.0)
    near = torch.log(-torch.expm1(logprobs.clamp(min=middle)))
    far = torch.log1p(-torch.exp(logprobs.clamp(max=middle)))
    return logprobs - torch.where(logprobs > middle, near, far)


def odds_ratio_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """ORPO's relative term: `-log σ(log odds(chosen) - log odds(rejected))` (Hong et al., 2024, arXiv:2403.07691,
    eq. 7).

    Args:
        chosen, rejected: mean log-probability of the tokens of each response, `(pairs,)`.

    Returns:
        One loss for each pair, `(pairs,)`.
    """
    return -logsigmoid(log_odds(chosen) - log_odds(rejected))
