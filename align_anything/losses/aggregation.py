"""How the units of responses of unequal length add up to one loss.

Each way is a weight for each unit and a count for the step: the loss stays a sum that the engine divides, and does not
depend on how the responses were split into micro-batches.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from align_anything.losses.responses import response_sums

Aggregation = Literal['token-mean', 'sequence-mean-token-mean', 'sequence-mean-token-sum-norm']
"""The names are verl's, written out.

`token-mean`: every token of the step alike (DAPO: Yu et al., 2025, arXiv:2503.14476, eq. 12).
`sequence-mean-token-mean`: every response alike (GRPO: Shao et al., 2024, arXiv:2402.03300, eq. 3; GSPO).
`sequence-mean-token-sum-norm`: the tokens of a response over one constant length, so that a token of a long response
weighs as much as one of a short one and no length is favoured (Dr. GRPO: Liu et al., 2025, arXiv:2503.20783).
"""


def aggregation_weights(
    weights: Tensor, segments: Tensor, num_responses: int, mode: Aggregation, max_length: int | None = None
) -> tuple[Tensor, Tensor]:
    """The weight of each unit in the sum, and what the step's sum is divided by.

    Args:
        weights: loss weight of each unit, `(N,)`.
        segments: the response of each unit, `(N,)`.
        num_responses: R; responses without weight count for nothing.
        max_length: the constant length of `sequence-mean-token-sum-norm`, usually the longest that may be sampled.

    Returns:
        The weights, `(N,)`, and the count of this micro-batch, `()`: of tokens, else of responses.
    """
    if mode == 'token-mean':
        return weights, weights.sum()
    lengths = response_sums(weights, segments, num_responses)
    count = (lengths > 0).sum().to(weights.dtype)
    if mode == 'sequence-mean-token-mean':
        return weights / lengths.masked_fill(lengths == 0, 1)[segments], count
    if max_length is None:
        raise ValueError(f"{mode} needs max_length, the constant length that each response's sum is divided by")
    return weights / max_length, count
