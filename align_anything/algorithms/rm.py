"""Reward model: score the chosen response above the rejected one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor

from align_anything.algorithms.base import ALGORITHMS, Algorithm
from align_anything.algorithms.pairs import PAIR_METRICS, TIE, labels_of, number_of_pairs, pair_metrics, pairs_of
from align_anything.core.types import Batch, Scored
from align_anything.losses.reward import bradley_terry_loss


@ALGORITHMS.register('rm')
class RM(Algorithm):
    """Pair mean of the Bradley-Terry loss plus the mean of squared scores, times `regularization`.

    A row whose meta holds a `margin` must be won by so much. One whose meta holds a `soft_label` is won with so much
    probability; ties, whose label is 0.5, count in the losses alone and not in the metrics of pairs.
    """

    name: ClassVar[str] = 'rm'
    task: ClassVar[str] = 'preference'
    scores: ClassVar[str] = 'responses'
    soft_labels: ClassVar[bool] = True

    regularization: NonNegativeFloat = Field(
        0.001, description='Weight of the mean squared score, which keeps scores near zero.'
    )

    def coefficients(self) -> dict[str, float]:
        return {'preference_loss': 1.0, 'squared_score': self.regularization}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        pairs = number_of_pairs(batch)
        return {
            'preference_loss': pairs,
            'squared_score': 2 * pairs,
            **dict.fromkeys((*PAIR_METRICS, 'overconfidence'), pairs - (labels_of(batch) == TIE).sum()),
        }

    def terms(self, batch: Batch, scored: Scored, estimates: Mapping[str, float]) -> dict[str, Tensor]:
        chosen, rejected = pairs_of(scored.values)
        labels = labels_of(batch).to(chosen)
        won, lost = chosen[labels != TIE].detach(), rejected[labels != TIE].detach()
        return {
            'preference_loss': bradley_terry_loss(chosen, rejected, margins_of(batch, chosen), labels).sum(),
            'squared_score': chosen.square().sum() + rejected.square().sum(),
            **pair_metrics(won, lost),
            'overconfidence': overconfidence(won, lost),
        }


def margins_of(batch: Batch, like: Tensor) -> Tensor:
    """The margin each pair asks for, `(pairs,)`."""
    margins = [float(meta.get('margin', 0.0)) for meta in batch.metas]
    return like.new_tensor(margins[: len(like)])


def overconfidence(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Sum over pairs of the probability given to the higher score, less one where it is the chosen one's.

    Its mean is zero for calibrated scores and above zero for scores that are too far apart.
    """
    margin = chosen - rejected
    return (torch.sigmoid(margin.abs()) - (margin > 0).to(margin.dtype)).sum()
