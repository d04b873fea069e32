"""Losses of models that score responses: rewards and costs."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def bradley_terry_loss(
    chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0, probability: Tensor | float = 1.0
) -> Tensor:
    """`-log σ(chosen - rejected - margin)` (Ouyang et al., 2022, arXiv:2203.02155, eq. 1; the margin of Touvron et
    al., 2023, arXiv:2307.09288, eq. 2).

    With a `probability` p below 1 the cross-entropy `-p log σ(x) - (1 - p) log σ(-x)` of the same logit x, as
    PickScore has it for ties (Kirstain et al., 2023, arXiv:2305.01569, eq. 2).

    Args:
        chosen, rejected: score of each response, `(pairs,)`.
        margin: by how much the chosen one should lead, `(pairs,)` or one number.
        probability: how likely the chosen one is the better, likewise; 0.5 for a tie.

    Returns:
        One loss for each pair, `(pairs,)`.
    """
    logits = chosen - rejected - margin
    # log σ(-x) is log σ(x) - x.
    return (1 - probability) * logits - logsigmoid(logits)


def safety_loss(costs: Tensor, unsafe: Tensor) -> Tensor:
    """`-log σ(s · cost)` with s = 1 for an unsafe response and -1 for a safe one: costs above zero mean harm.

    The classification term of Safe RLHF's cost model (Dai et al., 2023, arXiv:2310.12773, eq. 6).

    Args:
        costs: cost of each response, `(R,)`.
        unsafe: whether it is harmful, `(R,)` bool.

    Returns:
        One loss for each response, `(R,)`.
    """
    return -logsigmoid(costs * (2.0 * unsafe - 1.0))
