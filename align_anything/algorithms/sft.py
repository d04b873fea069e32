"""Supervised fine-tuning: raise the log-probability of the responses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from align_anything.algorithms.base import ALGORITHMS, Algorithm
from align_anything.core.types import Batch, Scored
from align_anything.losses.sft import sft_loss


@ALGORITHMS.register('sft')
class SFT(Algorithm):
    """Token mean of the negative log-likelihood over the optimizer step."""

    name: ClassVar[str] = 'sft'
    task: ClassVar[str] = 'supervised'

    def coefficients(self) -> dict[str, float]:
        return {'loss': 1.0}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {'loss': batch.weights.sum()}

    def terms(self, batch: Batch, scored: Scored, estimates: Mapping[str, float]) -> dict[str, Tensor]:
        return {'loss': sft_loss(scored.values, batch.weights)}
