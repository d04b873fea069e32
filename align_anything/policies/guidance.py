"""Classifier-free guidance, of whatever a model predicts."""

from __future__ import annotations

import torch
from torch import Tensor


def guided(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """`s c + (1 - s) u`: classifier-free guidance (Ho and Salimans, 2022, arXiv:2207.12598).

    Of logits, of the states that a linear layer makes them of, which is the same, or of a denoiser's predictions. Where
    both are equal nothing changes, not even by rounding. It is computed in float32 at least, and has the type that it
    is given.
    """
    wide = torch.promote_types(conditional.dtype, torch.float32)
    strong, weak = conditional.to(wide), unconditional.to(wide)
    return (strong + (scale - 1) * (strong - weak)).to(conditional.dtype)
