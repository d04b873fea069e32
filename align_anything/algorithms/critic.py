"""What a critic learns: the return that is still to come at each token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field, PositiveFloat
from torch import Tensor

from align_anything.algorithms.base import Algorithm
from align_anything.core.types import Batch, Scored
from align_anything.losses.value import explained_variance_sums, value_loss

EXPLAINED = ('returns', 'squared_returns', 'value_errors', 'squared_value_errors')


class Critic(Algorithm):
    """Half the squared error of the values, clipped around those at the rollout. No run is of it alone.

    A unit's per-unit values are `values/<role>` and `returns/<role>`.
    """

    name: ClassVar[str] = 'critic'
    task: ClassVar[str] = 'prompt'
    scores: ClassVar[str] = 'units'

    role: str = Field('reward_critic', description='Which critic this is.')
    clip_range_value: PositiveFloat | None = Field(
        None, description='Value clip range, around the values at the rollout.'
    )

    @property
    def has_ratios(self) -> bool:
        return True

    def coefficients(self) -> dict[str, float]:
        return {'value_loss': 1.0}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return dict.fromkeys(('value_loss', *EXPLAINED), batch.weights.sum())

    def terms(self, batch: Batch, scored: Scored, estimates: Mapping[str, float]) -> dict[str, Tensor]:
        values, returns = scored.values, batch.values_of(f'returns/{self.role}')
        loss = value_loss(
            values, batch.values_of(f'values/{self.role}'), returns, batch.weights, clip_range=self.clip_range_value
        )
        return {'value_loss': loss, **explained_variance_sums(values, returns, batch.weights)}
