"""CPO: contrastive preference optimisation, DPO with a uniform reference and a likelihood term."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field, PositiveFloat
from torch import Tensor

from align_anything.algorithms.base import ALGORITHMS
from align_anything.algorithms.pairs import LabelSmoothing, PairAlgorithm, SFTCoeff
from align_anything.core.types import Need
from align_anything.losses.dpo import Ratios
from align_anything.losses.reference_free import cpo_loss


@ALGORITHMS.register('cpo')
class CPO(PairAlgorithm):
    """Pair mean of CPO's preference loss plus the token mean of the chosen responses' negative log-likelihood."""

    name: ClassVar[str] = 'cpo'
    other_names: ClassVar[Mapping[str, str]] = {'beta': 'scale_coeff', 'cpo_alpha': 'sft_coeff'}

    scale_coeff: PositiveFloat = Field(0.1, description='Beta: scale of the log-probabilities as rewards.')
    label_smoothing: LabelSmoothing = 0.0
    sft_coeff: SFTCoeff = 1.0

    @property
    def needs(self) -> Need:
        return 'probability'

    def pair_losses(self, ratios: Ratios) -> tuple[Tensor, Tensor, Tensor]:
        losses = cpo_loss(ratios.chosen, ratios.rejected, beta=self.scale_coeff, label_smoothing=self.label_smoothing)
        return losses, self.scale_coeff * ratios.chosen, self.scale_coeff * ratios.rejected
