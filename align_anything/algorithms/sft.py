"""Supervised fine-tuning: raise the log-probability of the responses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, NonNegativeFloat
from torch import Tensor

from align_anything.algorithms.base import ALGORITHMS, Algorithm
from align_anything.configs.effects import Effects, writing
from align_anything.core.types import ACTION, MEDIA_KINDS, Batch, Scored
from align_anything.losses.sft import sft_loss


@ALGORITHMS.register('sft')
class SFT(Algorithm):
    """Token mean of the negative log-likelihood over the optimizer step."""

    name: ClassVar[str] = 'sft'
    task: ClassVar[str] = 'supervised'
    told_by_kind: ClassVar[tuple[str, ...]] = ('loss',)

    code_loss_over: Literal['vocabulary', 'range'] = Field(
        'vocabulary',
        description='What the probability of a code of a medium is one among: the whole vocabulary, so that any engine '
        'goes on in a medium by itself, or the range of codes that can stand there, which other algorithms and '
        'rollouts read alone.',
    )

    depth_loss_coef: NonNegativeFloat = Field(
        1.0,
        description='Weight of the loss of the codes that ride beside the tokens of a sound, which a depth decoder '
        'writes (CSM). Models whose codes are all tokens have no such loss.',
    )

    takes_effect: ClassVar[Effects] = {
        'code_loss_over': writing(*MEDIA_KINDS, ACTION),
        'depth_loss_coef': writing('audio', off=(1.0,)),
    }

    @property
    def scores_ranges(self) -> bool:
        return self.code_loss_over == 'range'

    @property
    def depth_coefficient(self) -> float | None:
        return self.depth_loss_coef

    def coefficients(self) -> dict[str, float]:
        return {'loss': 1.0}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {'loss': batch.weights.sum()}

    def terms(self, batch: Batch, scored: Scored, estimates: Mapping[str, float]) -> dict[str, Tensor]:
        return {'loss': sft_loss(scored.values, batch.weights)}
