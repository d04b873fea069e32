"""How much better a unit, or a response, was than expected.

Units are flat: `segments`, `(N,)` and non-decreasing, names the response of each, and a response without units does no
harm. Units follow each other as the policy sampled them; what it did not say (a later user turn) is no unit, so nothing
is discounted across it. Numbers of responses are `(R,)`; `groups`, `(R,)`, names the prompt of each, in any order, and
all responses to a prompt must be in one call. A response's advantage is each of its units': `advantages[segments]`.

REINFORCE++ (Hu et al., 2025, arXiv:2501.03262) is `discounted_sums` of `token_rewards`, whitened over the step
(`losses/moments.py`). Its form with a baseline is the same on the scores of `group_relative` with scale `none`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from align_anything.losses.responses import response_sums

STD_FLOOR = 1e-4
"""Added to the standard deviation that scores are divided by, as in TRL."""


def last_units(segments: Tensor) -> Tensor:
    """Whether each unit is the last one of its response, `(N,)` bool."""
    last = torch.ones_like(segments, dtype=torch.bool)
    last[:-1] = segments[1:] != segments[:-1]
    return last


def token_rewards(
    scores: Tensor,
    kl: Tensor,
    segments: Tensor,
    *,
    kl_coeff: float,
    clip_range: float | None = None,
    given: Tensor | None = None,
) -> Tensor:
    """Reward of each unit: the penalty for leaving the reference, and on the last unit of a response its score.

    Ziegler et al., 2019, arXiv:1909.08593, eq. 2, spread over tokens.

    Args:
        scores: score of each response, `(R,)`.
        kl: estimated divergence at each unit, `(N,)`, usually `k1`.
        clip_range: bound of each unit's reward in either direction, the score included (as in Safe RLHF's code).
        given: what of the scores was given at which unit, `(N,)`; the last unit has the rest.

    Returns:
        The rewards, `(N,)`.
    """
    if given is not None:
        scores = scores - response_sums(given, segments, len(scores))
    rewards = torch.where(last_units(segments), scores[segments], 0.0) - kl_coeff * kl
    rewards = rewards if given is None else rewards + given
    return rewards if clip_range is None else rewards.clamp(-clip_range, clip_range)


def discounted_sums(values: Tensor, segments: Tensor, discount: float) -> Tensor:
    """`x_t + d x_{t+1} + d² x_{t+2} + …`, up to the end of each unit's response.

    Each pass doubles how far the sums reach, so there are log₂ N passes and no loop over units.

    Args:
        values: one number for each unit, `(N,)`.
        discount: d, from 0 to 1.

    Returns:
        The sums, `(N,)`.
    """
    reach = 1
    while reach < len(values):
        same = segments[reach:] == segments[:-reach]
        ahead = torch.where(same, discount**reach * values[reach:], 0.0)
        values = torch.cat([values[:-reach] + ahead, values[-reach:]])
        reach *= 2
    return values


def gae(
    values: Tensor, rewards: Tensor, segments: Tensor, *, gamma: float, lam: float, bootstrap: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation: `Σ_l (γλ)^l δ_{t+l}` with `δ_t = r_t + γ V_{t+1} - V_t` (Schulman et al., 2015,
    arXiv:1506.02438, eq. 16).

    Args:
        values: expected return before each unit is sampled, `(N,)`.
        rewards: reward of each unit, `(N,)`.
        bootstrap: expected return after the last unit of each response, `(R,)`: zero where the response ended, the
            bootstrap value where it was clipped. Without it all count as ended, which tells the critic that whatever
            runs into the length limit is worth no more than what it has.

    Returns:
        The advantages and the returns `advantage + value` that the critic learns, each `(N,)`.
    """
    bootstrapped = torch.zeros_like(values) if bootstrap is None else bootstrap[segments]
    following = torch.where(last_units(segments), bootstrapped, values.roll(-1))
    advantages = discounted_sums(rewards + gamma * following - values, segments, gamma * lam)
    return advantages, advantages + values


def group_relative(
    scores: Tensor,
    groups: Tensor,
    *,
    scale: Literal['group', 'batch', 'none'] = 'group',
    batch_std: Tensor | float | None = None,
) -> Tensor:
    """Score of each response less the mean of its group, over a standard deviation.

    `group` divides by the group's own (GRPO: Shao et al., 2024, arXiv:2402.03300, section 4.1.2), `batch` by that of
    all scores of the step, `none` not at all, so that easy and hard prompts weigh alike (Dr. GRPO: Liu et al., 2025,
    arXiv:2503.20783). Deviations are those of samples, with n - 1, as in TRL and verl; the papers do not say. A group
    whose scores are equal, or that has one response, gets zeros.

    Args:
        scores: `(R,)`.
        batch_std: for `batch`, the standard deviation of the step's scores over all ranks (`losses/moments.py`).

    Returns:
        The advantages, `(R,)`.
    """
    centred, squares, counts = _spread(scores, groups)
    if scale == 'group':
        centred = centred / ((squares / (counts - 1).clamp(min=1)).sqrt() + STD_FLOOR)
    elif scale == 'batch':
        if batch_std is None:
            raise ValueError("scale 'batch' needs batch_std, the standard deviation of all scores of the step")
        centred = centred / (batch_std + STD_FLOOR)
    return centred.to(scores.dtype)


def rloo(scores: Tensor, groups: Tensor) -> Tensor:
    """Score of each response less the mean of the others of its group (Ahmadian et al., 2024, arXiv:2402.14740;
    Kool et al., 2019).

    A response that is alone in its group has nothing to be compared with and gets zero, as in TRL.

    Args:
        scores: `(R,)`.

    Returns:
        The advantages, `(R,)`.
    """
    centred, _, counts = _spread(scores, groups)
    return (centred * counts / (counts - 1).clamp(min=1)).to(scores.dtype)


def _spread(scores: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each response: its distance from its group's mean, its group's sum of squared distances, its group's size.

    In float64, where equal scores have a spread that is zero for all purposes; in float32 the rounding of their mean,
    over a deviation that is as small, would be an advantage.
    """
    _, index, counts = torch.unique(groups, return_inverse=True, return_counts=True)
    wide = scores.double()
    centred = wide - (response_sums(wide, index, len(counts)) / counts)[index]
    return centred, response_sums(centred.square(), index, len(counts))[index], counts[index]


def weighed_by_kind(advantages: Tensor, kinds: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Advantages multiplied by the weight of the kind of each unit, `(N,)`.

    A response that reasons in text and then draws has one advantage for both (T2I-R1: Jiang et al., 2025,
    arXiv:2505.00703); weights give the text, which has fewer units, or the picture more or less of it.

    Args:
        advantages: of each unit, `(N,)`.
        kinds: which units are of which kind, `(N,)` bool by name.
        weights: by kind; 1 for a kind without.
    """
    for kind, weight in weights.items():
        advantages = torch.where(kinds[kind], weight * advantages, advantages)
    return advantages
