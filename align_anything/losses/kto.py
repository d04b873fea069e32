"""Kahneman-Tversky optimisation, on single responses that are good or bad."""

from __future__ import annotations

import torch
from torch import Tensor


def kto_loss(
    ratios: Tensor,
    desirable: Tensor,
    baseline: Tensor | float,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """KTO: `λ_D (1 - σ(β (ratio - z)))` for desirable responses, `λ_U (1 - σ(β (z - ratio)))` for others.

    Ethayarajh et al., 2024, arXiv:2402.01306, eq. 8.

    Args:
        ratios: log-probability of each response under the policy less that under the reference, `(R,)`.
        desirable: whether each response is good, `(R,)` bool.
        baseline: z, the estimated divergence of policy and reference, zero or more; no gradient flows through it.

    Returns:
        One loss for each response, `(R,)`.
    """
    good = desirable_weight * (1 - torch.sigmoid(beta * (ratios - baseline)))
    bad = undesirable_weight * (1 - torch.sigmoid(beta * (baseline - ratios)))
    return torch.where(desirable, good, bad)
