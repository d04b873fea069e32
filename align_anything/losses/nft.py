"""DiffusionNFT: reinforcement learning on the noising process, without log-probabilities of a sampler.

Zheng et al., 2025, arXiv:2509.16117. A response is compared with itself: a policy that is a little better than the old
one, and one as much worse, both predict it, and its reward says which of the two should be right.
"""

from __future__ import annotations

import torch
from torch import Tensor

ERROR_FLOOR = 1e-5


def optimality(advantages: Tensor, clip: float = 5.0) -> Tensor:
    """Returns how good responses are, from 0 to 1: `clip(½ + A / 2c, 0, 1)` of advantages clipped to ±c.

    Args:
        advantages: scores less the mean of their group, over the deviation of all, in any shape.
    """
    return (0.5 + advantages / (2 * clip)).clamp(0, 1)


def contrast(prediction: Tensor, old: Tensor, target: Tensor, sigma: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Returns the errors of the better and of the worse policy, `(N,)` each.

    They predict `v⁺ = β v + (1 - β) v_old` and `v⁻ = (1 + β) v_old - β v`. An error is that of the clean sample,
    `mean (σ (u - v*))²`, over its own mean absolute value, through which no gradient flows.

    Args:
        prediction: v, of a flow, `(N, …)`, with a gradient.
        old: v_old, of the policy that sampled, `(N, …)`.
        target: v*, `(N, …)`.
        sigma: noise level, `(N,)`.
        beta: how far the two are from the old policy, above 0.
    """

    def error(predicted: Tensor) -> Tensor:
        residuals = sigma[:, None] * (predicted - target).flatten(1)
        scale = residuals.detach().abs().mean(1).clamp(min=ERROR_FLOOR)
        return residuals.square().mean(1) / scale

    old = old.detach()
    return error(beta * prediction + (1 - beta) * old), error((1 + beta) * old - beta * prediction)


def nft_loss(
    better: Tensor, worse: Tensor, optimal: Tensor, weights: Tensor, *, beta: float, clip: float = 5.0
) -> Tensor:
    """Returns `Σ w c (r ℓ⁺ + (1 - r) ℓ⁻) / β`, `()`.

    Args:
        better, worse: of `contrast`, `(N,)`.
        optimal: r, of `optimality`, of the response of each unit, `(N,)`.
        weights: `(N,)`.
        clip: c, that of the advantages, which their code multiplies by.
    """
    return clip / beta * torch.sum(weights * (optimal * better + (1 - optimal) * worse))
