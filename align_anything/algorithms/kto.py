"""Kahneman-Tversky optimisation: learn from single responses that are good or bad."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor

from align_anything.algorithms.base import ALGORITHMS
from align_anything.algorithms.referring import Referring
from align_anything.core.types import Batch, Scored
from align_anything.losses.kto import kto_loss
from align_anything.losses.responses import response_sums


@ALGORITHMS.register('kto')
class KTO(Referring):
    """Response mean of KTO's loss, on rows with a label or on pairs.

    The divergence z of policy and reference is estimated, as in the paper, on prompts with the responses of other
    rows: once for each optimizer step, over all its micro-batches and ranks, before any gradient is taken.
    """

    name: ClassVar[str] = 'kto'
    other_names: ClassVar[Mapping[str, str]] = {
        'beta': 'scale_coeff',
        'pref_beta': 'scale_coeff',
        'desirable_weight': 'scale_better',
        'undesirable_weight': 'scale_worse',
        'kto_chosen_weight': 'scale_better',
        'kto_rejected_weight': 'scale_worse',
    }
    task: ClassVar[str] = 'unpaired'
    estimates_first: ClassVar[bool] = True
    told_by_kind: ClassVar[tuple[str, ...]] = ('desirable_reward', 'undesirable_reward')

    scale_coeff: PositiveFloat = Field(
        0.1, description='Beta: how strongly log-ratios to the reference count as rewards.'
    )
    scale_better: NonNegativeFloat = Field(1.0, description='Weight of the loss of desirable responses.')
    scale_worse: NonNegativeFloat = Field(1.0, description='Weight of the loss of undesirable responses.')

    def coefficients(self) -> dict[str, float]:
        return {'preference_loss': 1.0}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        labels = labels_of(batch)
        return {
            'preference_loss': torch.tensor(float(len(labels))),
            'reward_accuracy': torch.tensor(float(len(labels))),
            'kl': torch.tensor(float(len(labels))),
            'desirable_reward': labels.sum(),
            'undesirable_reward': (~labels).sum(),
        }

    def terms(self, batch: Batch, scored: Scored, estimates: Mapping[str, float]) -> dict[str, Tensor]:
        labels = labels_of(batch).to(batch.weights.device)
        ratios = self._ratios(batch, scored)[: len(labels)]
        # The divergence cannot be below zero, its estimate can.
        baseline = max(estimates['kl'], 0.0)
        losses = kto_loss(
            ratios,
            labels,
            baseline,
            beta=self.scale_coeff,
            desirable_weight=self.scale_better,
            undesirable_weight=self.scale_worse,
        )
        rewards = self.scale_coeff * ratios.detach()
        return {
            'preference_loss': losses.sum(),
            'reward_accuracy': ((ratios > baseline) == labels).sum(),
            'kl': losses.new_tensor(baseline * len(labels)),
            'desirable_reward': (rewards * labels).sum(),
            'undesirable_reward': (rewards * ~labels).sum(),
        }

    def estimates(self, batch: Batch, scored: Scored) -> dict[str, tuple[Tensor, Tensor]]:
        ratios = self._ratios(batch, scored)
        return {'kl': (ratios.sum(), torch.tensor(float(len(ratios)), device=ratios.device))}

    def _ratios(self, batch: Batch, scored: Scored) -> Tensor:
        values = (scored.values - batch.values_of('reference')) * batch.weights
        return response_sums(values, batch.segments, batch.num_responses)


def labels_of(batch: Batch) -> Tensor:
    """Whether each response is desirable, `(R,)` bool; `()` entries for an empty micro-batch."""
    return torch.tensor([label for meta in batch.metas for label in meta.get('desirable', ())], dtype=torch.bool)
