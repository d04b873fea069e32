"""From scores of units to numbers of responses."""

from __future__ import annotations

from torch import Tensor


def response_sums(values: Tensor, segments: Tensor, num_responses: int) -> Tensor:
    """Sums the values of each response's units.

    Args:
        values: one number for each unit, `(N,)`.
        segments: the response that each unit belongs to, `(N,)`.
        num_responses: R; a response without units sums to zero.

    Returns:
        The sums, `(R,)`.
    """
    return values.new_zeros(num_responses).index_add(0, segments, values)
