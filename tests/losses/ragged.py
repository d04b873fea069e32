"""Responses of unequal length as lists of lists, as loops read them, and flat, as the losses do."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

Lists = list[list[float]]
LENGTHS = (3, 1, 6, 2, 1, 4)
WEIGHTS: Lists = [[1.0] * 3, [1.0], [1.0, 1.0, 0.0, 0.0, 1.0, 1.0], [1.0] * 2, [0.0], [1.0] * 4]
"""Of responses of `LENGTHS`: two units inside the third have none, and the fifth is a filler that has none at all."""


def lists(seed: int, scale: float = 1.0, lengths: Sequence[int] = LENGTHS) -> Lists:
    generator = np.random.default_rng(seed)
    return [(scale * generator.standard_normal(length)).tolist() for length in lengths]


def flat(rows: Lists) -> Tensor:
    return torch.tensor([value for row in rows for value in row], dtype=torch.float64)


def segments_of(rows: Lists) -> Tensor:
    return torch.tensor([number for number, row in enumerate(rows) for _ in row], dtype=torch.int64)


def per_response(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def check_gradient(loss: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Compares the gradient with finite differences."""
    leaves = [values.clone().requires_grad_() for values in inputs]
    assert torch.autograd.gradcheck(loss, leaves, eps=1e-6, atol=1e-7)


def cuts() -> list[list[list[int]]]:
    """Ways to cut the responses of `LENGTHS` into micro-batches, one of them empty in the last."""
    numbers = list(range(len(LENGTHS)))
    return [[numbers], [[number] for number in numbers], [numbers[:4], numbers[4:], []]]


def cut(rows: Lists, numbers: list[int]) -> Lists:
    return [rows[number] for number in numbers]
