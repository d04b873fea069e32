"""Direct preference optimisation: raise the chosen response over the rejected one, relative to a reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, field_validator, model_validator
from torch import Tensor

from align_anything.algorithms.base import ALGORITHMS
from align_anything.algorithms.pairs import LabelSmoothing, PairAlgorithm
from align_anything.algorithms.referring import Referring
from align_anything.configs.effects import Effect, Effects
from align_anything.losses.dpo import DPO_LOSSES, Constants, Ratios

LossType = Literal[tuple(DPO_LOSSES)]
SMOOTHED = ('sigmoid', 'sigmoid_norm', 'robust', 'exo_pair')


def of_losses(*names: str, off: tuple[Any, ...] = (None,)) -> Effect:
    """The condition that one of these losses is among those of the run."""
    return Effect(
        lambda facts: not set(names).isdisjoint(facts.algorithm.loss_type),
        f'it means nothing without loss_type: {" or ".join(names)}; leave it out.',
        by=('train_cfgs.loss_type',),
        off=off,
    )


class DPOLosses(PairAlgorithm):
    """Pair mean of one loss, or of several with weights, plus an optional likelihood term on chosen responses."""

    takes_effect: ClassVar[Effects] = {
        'label_smoothing': of_losses(*SMOOTHED, off=(0.0,)),
        'discopop_tau': of_losses('discopop'),
    }
    other_names: ClassVar[Mapping[str, str]] = {
        'beta': 'scale_coeff',
        'pref_beta': 'scale_coeff',
        'pref_loss': 'loss_type',
        'pref_ftx': 'sft_coeff',
        'rpo_alpha': 'sft_coeff',
        'dpo_label_smoothing': 'label_smoothing',
    }

    scale_coeff: PositiveFloat = Field(
        0.1,
        description='Beta: how strongly log-ratios to the reference count as rewards. Small values allow a larger '
        'distance from the reference.',
    )
    loss_type: list[LossType] = Field(
        ['sigmoid'], min_length=1, description="Loss on each pair, by TRL's names, or several that are added."
    )
    loss_weights: list[NonNegativeFloat] | None = Field(
        None, description='Weight of each entry of loss_type. null weighs all with 1.'
    )
    label_smoothing: LabelSmoothing = Field(
        0.0,
        description='Assumed chance that a label is flipped (sigmoid, sigmoid_norm, robust); in exo_pair, which needs '
        'it above 0, the probability of the rejected response.',
    )
    discopop_tau: PositiveFloat = Field(0.05, description='Temperature of the blend in the discopop loss.')

    @field_validator('loss_type', mode='before')
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode='after')
    def _fits_together(self) -> DPOLosses:
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss_type):
            raise ValueError(
                f'loss_weights has {len(self.loss_weights)} entries for {len(self.loss_type)} losses in loss_type'
            )
        if 'exo_pair' in self.loss_type and not self.label_smoothing:
            raise ValueError('loss_type exo_pair needs label_smoothing above 0 (its paper uses 1e-3)')
        return self

    def pair_losses(self, ratios: Ratios) -> tuple[Tensor, Tensor, Tensor]:
        constants = Constants(self.scale_coeff, self.label_smoothing, self.discopop_tau)
        weights = self.loss_weights or [1.0] * len(self.loss_type)
        losses = sum(
            weight * DPO_LOSSES[name](ratios, constants) for name, weight in zip(self.loss_type, weights, strict=True)
        )
        return losses, self.scale_coeff * ratios.chosen, self.scale_coeff * ratios.rejected


@ALGORITHMS.register('dpo')
class DPO(DPOLosses, Referring):
    """Learns from pairs that there are."""

    name: ClassVar[str] = 'dpo'
