"""Reward under a bound on cost, by a Lagrange multiplier (Safe RLHF: Dai et al., 2023, arXiv:2310.12773).

The policy raises `J_R - λ J_C`, the multiplier λ rises while the mean cost is above its threshold. The penalty for
leaving the reference is split between the two: half of it is taken from the rewards, half is added to the costs, which
is `token_rewards` with the coefficients `β / 2` and `-β / 2`. What reaches the policy is half of β, whatever λ is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from torch import Tensor

LEAST = 1e-6
"""The least multiplier that is stepped by itself: next to nothing, with a logarithm."""


def lagrangian_advantages(rewards: Tensor, costs: Tensor, multiplier: float) -> Tensor:
    """`(A_r - λ A_c) / (1 + λ)` of each unit: the step stays of one size however large λ grows (eq. 30).

    Args:
        rewards: advantage in reward, `(N,)`.
        costs: advantage in cost, `(N,)`; more cost is worse.
        multiplier: λ, zero or more.
    """
    return (rewards - multiplier * costs) / (1.0 + multiplier)


def updated_log_multiplier(
    log_multiplier: float, mean_cost: float, *, learning_rate: float, threshold: float, maximum: float | None = None
) -> float:
    """`ln λ + α λ (J_C - d)`, at most `ln maximum` (eq. 31): a step of gradient ascent on `λ (J_C - d)` in ln λ.

    The paper writes J_C for the mean cost plus its d; here, as in its code, the threshold is what the cost may be.

    Args:
        mean_cost: mean cost of recent responses, over all ranks.
        threshold: d, the mean cost that is allowed.
    """
    raised = log_multiplier + learning_rate * math.exp(log_multiplier) * (mean_cost - threshold)
    return raised if maximum is None else min(raised, math.log(maximum))


def stepped_log_multiplier(
    log_multiplier: float, mean_cost: float, *, learning_rate: float, threshold: float, maximum: float
) -> float:
    """`ln (λ + α (J_C - d))`, λ from 1e-6 to `maximum`: gradient ascent on `λ (J_C - d)` in λ itself.

    It falls as fast as it rises, wherever λ is. So SafeVLA (Zhang et al., 2025, arXiv:2503.03480) bounds the costs of
    events, by the multiplier of omnisafe, which steps by Adam.

    Args:
        mean_cost: mean cost of recent responses, over all ranks.
        threshold: d, the mean cost that is allowed.
    """
    stepped = math.exp(log_multiplier) + learning_rate * (mean_cost - threshold)
    return math.log(min(max(stepped, LEAST), maximum))


def recent(seen: Sequence[float], costs: Iterable[float], size: int) -> list[float]:
    """The last `size` costs, oldest first: those seen, then the new ones. Their mean is J_C.

    One step's responses are few; the mean of several steps keeps λ from following their noise. The costs, with ln λ, is
    state that belongs in the checkpoint.
    """
    return [*seen, *costs][-size:]
