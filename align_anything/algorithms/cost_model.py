"""Cost model of Safe RLHF: rank harm, with zero between safe and unsafe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor

from align_anything.algorithms.base import ALGORITHMS, Algorithm
from align_anything.algorithms.pairs import PAIR_METRICS, number_of_pairs, pair_metrics, pairs_of
from align_anything.core.types import Batch, Scored
from align_anything.losses.reward import bradley_terry_loss, safety_loss


@ALGORITHMS.register('cost_model')
class CostModel(Algorithm):
    """Pair mean of the Bradley-Terry loss and of both responses' safety losses (Dai et al., 2023, arXiv:2310.12773,
    eq. 6), plus the mean of squared costs times `regularization`.

    The response that comes first in a row is the more harmful one, whose cost must be higher; the row's meta says of
    either whether it is safe.
    """

    name: ClassVar[str] = 'cost_model'
    task: ClassVar[str] = 'preference'
    scores: ClassVar[str] = 'responses'
    meta_keys: ClassVar[tuple[str, ...]] = ('is_better_safe', 'is_worse_safe')

    scale_coeff: NonNegativeFloat = Field(1.0, description='Weight of the safety losses beside the ranking loss.')
    regularization: NonNegativeFloat = Field(
        0.001, description='Weight of the mean squared cost, which keeps costs near zero.'
    )

    def coefficients(self) -> dict[str, float]:
        return {'preference_loss': 1.0, 'safety_loss': self.scale_coeff, 'squared_score': self.regularization}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        pairs = number_of_pairs(batch)
        return {
            'preference_loss': pairs,
            'safety_loss': pairs,
            'squared_score': 2 * pairs,
            'safety_accuracy': 2 * pairs,
            **dict.fromkeys(PAIR_METRICS, pairs),
        }

    def terms(self, batch: Batch, scored: Scored, estimates: Mapping[str, float]) -> dict[str, Tensor]:
        costs = scored.values
        harmful, harmless = pairs_of(costs)
        costs = torch.stack([harmful, harmless], dim=1).flatten()
        flags = [not meta[key] for meta in batch.metas for key in self.meta_keys if key in meta]
        unsafe = torch.tensor(flags, dtype=torch.bool, device=costs.device)
        return {
            'preference_loss': bradley_terry_loss(harmful, harmless).sum(),
            'safety_loss': safety_loss(costs, unsafe).sum(),
            'squared_score': costs.square().sum(),
            'safety_accuracy': ((costs > 0) == unsafe).sum(),
            **pair_metrics(harmful, harmless),
        }
