"""How far a policy is from its reference, estimated on the tokens that were sampled.

Each estimator gives one number for each unit, from the log-probability of that unit under the policy that sampled it
and under the reference (Schulman, 2020, http://joschu.net/blog/kl-approx.html). `k1` and `k3` are unbiased estimates of
`KL(policy ‖ reference)`, `k2` is not. Their gradients are another matter (Tang & Munos, 2025, arXiv:2506.09477), since
the tokens too were sampled from the policy. As a term of the loss, on tokens of the current policy,

- `k1` has the expected gradient zero: it holds the policy nowhere and only adds noise;
- `k2` has the gradient of `KL(policy ‖ reference)` at each token;
- `k3`, which GRPO has, has that of `KL(reference ‖ policy)`. The two agree near the reference.

In the reward no gradient flows through the estimate, so there `k1` is the right one, and what later tokens cost is
credited to earlier ones, which no term of the loss does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor


def k1(policy: Tensor, reference: Tensor) -> Tensor:
    """`log p - log q` of each unit, `(N,)`: unbiased, of either sign."""
    return policy - reference


def k2(policy: Tensor, reference: Tensor) -> Tensor:
    """`(log p - log q)² / 2` of each unit, `(N,)`: biased by the third order of the difference, never negative."""
    return 0.5 * (policy - reference).square()


def k3(policy: Tensor, reference: Tensor) -> Tensor:
    """`q/p - 1 - log q/p` of each unit, `(N,)`: unbiased and never negative (Shao et al., 2024, arXiv:2402.03300,
    eq. 4)."""
    ratios = reference - policy
    return torch.expm1(ratios) - ratios


KL_ESTIMATORS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType({'k1': k1, 'k2': k2, 'k3': k3})
"""Estimator by name; each takes the log-probabilities under the policy, then those under the reference, `(N,)`."""


def adapted_kl_coeff(coeff: float, kl: float, *, target: float, gain: float = 0.1) -> float:
    """The coefficient of the penalty for the next step: larger after a step whose divergence was above the target.

    `β (1 + K · clip(kl / target - 1, -0.2, 0.2))` (Ziegler et al., 2019, arXiv:1909.08593, section 2.2, K = 0.1). Their
    code, and TRL's, write K as responses per step over a horizon.

    Args:
        kl: the step's mean over responses of the divergence summed over the units of each.
        target: the divergence to be held, above zero.
    """
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return coeff * (1.0 + gain * error)
