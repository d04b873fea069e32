"""SimPO: compare mean log-probabilities, without a reference and with a target margin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor

from align_anything.algorithms.base import ALGORITHMS
from align_anything.algorithms.pairs import LabelSmoothing, PairAlgorithm
from align_anything.core.types import Need
from align_anything.losses.dpo import Ratios
from align_anything.losses.reference_free import simpo_loss


@ALGORITHMS.register('simpo')
class SimPO(PairAlgorithm):
    """Pair mean of SimPO's loss."""

    name: ClassVar[str] = 'simpo'
    other_names: ClassVar[Mapping[str, str]] = {'beta': 'scale_coeff', 'simpo_gamma': 'gamma'}

    scale_coeff: PositiveFloat = Field(2.5, description='Beta: scale of the mean log-probabilities as rewards.')
    gamma: NonNegativeFloat = Field(1.4, description='Target margin between the rewards of the two responses.')
    label_smoothing: LabelSmoothing = 0.0

    @property
    def needs(self) -> Need:
        return 'probability'

    def pair_losses(self, ratios: Ratios) -> tuple[Tensor, Tensor, Tensor]:
        mean = ratios.per_token()
        losses = simpo_loss(
            mean.chosen,
            mean.rejected,
            beta=self.scale_coeff,
            margin=self.gamma,
            label_smoothing=self.label_smoothing,
        )
        return losses, self.scale_coeff * mean.chosen, self.scale_coeff * mean.rejected
