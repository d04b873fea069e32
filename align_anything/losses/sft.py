"""Supervised fine-tuning."""

from __future__ import annotations

from torch import Tensor


def sft_loss(logprobs: Tensor, weights: Tensor) -> Tensor:
    """Negative log-likelihood summed over units: `-Σ w_i log p_i`.

    The engine divides it by the sum of the weights over the optimizer step, ranks included, which makes it the
    token mean of the step whatever the micro-batches were.

    Args:
        logprobs: log-probability of each trained token, `(N,)`.
        weights: loss weight of each token, `(N,)`.

    Returns:
        The sum, `()`.
    """
    return -(weights * logprobs).sum()
