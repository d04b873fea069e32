"""Operations are counted as PyTorch meets them, those of attention on a CPU too, forward and backward."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from align_anything.core.counting import Counting


def test_attention_on_a_cpu_counts_forward_and_backward() -> None:
    query, key, value = (torch.randn(2, 3, length, 8, requires_grad=True) for length in (5, 7, 7))
    pair = 2 * 3 * 5 * 7 * (2 * 8)
    with Counting() as counting:
        attended = F.scaled_dot_product_attention(query, key, value)
        assert (counting.attention, counting.products) == (2 * pair, 0)
        attended.sum().backward()
    # Scores are computed again, and each of the two products has two gradients.
    assert (counting.attention, counting.products) == (2 * pair + 5 * pair, 0)
