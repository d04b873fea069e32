"""ORPO: supervised learning on chosen responses with a penalty on the odds of rejected ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field, NonNegativeFloat
from torch import Tensor

from align_anything.algorithms.base import ALGORITHMS
from align_anything.algorithms.pairs import PairAlgorithm, SFTCoeff
from align_anything.core.types import Need
from align_anything.losses.dpo import Ratios
from align_anything.losses.reference_free import odds_ratio_loss


@ALGORITHMS.register('orpo')
class ORPO(PairAlgorithm):
    """Token mean of the chosen responses' negative log-likelihood plus lambda times the pair mean of the odds term.

    Hong et al., 2024, arXiv:2403.07691, eq. 6. The likelihood is that of the responses, as in the paper; the authors'
    code and TRL also train the prompt.
    """

    name: ClassVar[str] = 'orpo'
    other_names: ClassVar[Mapping[str, str]] = {'beta': 'scale_coeff', 'orpo_beta': 'scale_coeff'}

    scale_coeff: NonNegativeFloat = Field(0.5, description='Lambda: weight of the odds-ratio term.')
    sft_coeff: SFTCoeff = 1.0

    def coefficients(self) -> dict[str, float]:
        return {'preference_loss': self.scale_coeff, 'sft_loss': self.sft_coeff}

    @property
    def needs(self) -> Need:
        return 'probability'

    def pair_losses(self, ratios: Ratios) -> tuple[Tensor, Tensor, Tensor]:
        mean = ratios.per_token()
        losses = odds_ratio_loss(mean.chosen, mean.rejected)
        return losses, self.scale_coeff * mean.chosen, self.scale_coeff * mean.rejected
