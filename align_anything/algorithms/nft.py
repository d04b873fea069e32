"""DiffusionNFT: each generated medium is noised again, and its reward says which of two predictions it is to pull."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from align_anything.algorithms.base import ALGORITHMS
from align_anything.algorithms.online import Experience, GroupBased, ReduceSum, State
from align_anything.algorithms.referring import Reference
from align_anything.core.types import Batch, Need, Scored
from align_anything.losses.advantages import group_relative
from align_anything.losses.moments import mean_and_variance, moments
from align_anything.losses.nft import nft_loss, optimality


@ALGORITHMS.register('nft')
class NFT(GroupBased, Reference):
    """DiffusionNFT (Zheng et al., 2025, arXiv:2509.16117), for models that denoise and predict a flow.

    The old policy samples, without noise on the way, and follows the trained one slowly.
    """

    name: ClassVar[str] = 'nft'

    num_generations: PositiveInt = Field(8, ge=2, description='Responses for each prompt, compared with each other.')
    contrast: PositiveFloat = Field(
        1.0,
        description='β of the paper: how far the better and the worse policy, of which the trained one is made, lie '
        'from the old one. 1 compares the trained policy itself; 0.1 for several rewards.',
    )
    clip_range_advantage: PositiveFloat = Field(
        5.0, description='Clip range of advantages, which are brought to 0 for the worst and 1 for the best.'
    )
    reference_coeff: NonNegativeFloat = Field(
        1e-4,
        description='λ of the paper: weight of the squared distance from what the reference predicts. With 0 there is '
        'no reference.',
    )
    old_decay_rate: NonNegativeFloat = Field(
        0.001,
        description='After rollout k, the old policy keeps min(old_decay_rate (k - old_decay_start), old_decay_max) of '
        'itself and takes the rest from the trained one; 0.0075 in the published settings for text in pictures.',
    )
    old_decay_max: NonNegativeFloat = Field(0.5, lt=1, description='Most that it keeps; 0.999 there.')
    old_decay_start: NonNegativeInt = Field(
        0, description='Rollouts during which it keeps nothing, and is the trained policy; 75 there.'
    )

    @property
    def refers(self) -> bool:
        return self.reference_coeff > 0

    @property
    def has_ratios(self) -> bool:
        return True

    @property
    def companions(self) -> tuple[str, ...]:
        return ('old', *(('reference',) if self.refers else ()))

    @property
    def contrasts(self) -> float | None:
        return self.contrast

    def problems_with(self, meets: Need) -> list[str]:
        found = super().problems_with(meets)
        if meets == 'probability':
            found.append('it trains on media that are noised again, and these models denoise nothing: choose grpo.')
        return found

    def old_decay(self, rollouts: int) -> float | None:
        return min(self.old_decay_rate * max(rollouts - self.old_decay_start, 0), self.old_decay_max)

    def advantages(self, experience: Experience, reduce_sum: ReduceSum, state: State) -> dict[str, Tensor]:
        scores = experience.scores
        _, variance = mean_and_variance(reduce_sum(moments(scores, scores.new_ones(len(scores)))))
        advantages = group_relative(scores, experience.groups, scale='batch', batch_std=variance.sqrt())
        return {'optimality': optimality(advantages, self.clip_range_advantage)[experience.segments]}

    def coefficients(self) -> dict[str, float]:
        return {'policy_loss': 1.0, **({'distance': self.reference_coeff} if self.refers else {})}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return dict.fromkeys(('policy_loss', *(('distance',) if self.refers else ()), 'drift'), batch.weights.sum())

    def terms(self, batch: Batch, scored: Scored, estimates: Mapping[str, float]) -> dict[str, Tensor]:
        better, worse = scored.contrast.unbind(1)
        optimal, clip = batch.values_of('optimality'), self.clip_range_advantage
        terms = {
            'policy_loss': nft_loss(better, worse, optimal, batch.weights, beta=self.contrast, clip=clip),
            'drift': (batch.weights * scored.drift.detach()).sum(),
        }
        if self.refers:
            terms['distance'] = (batch.weights * scored.divergence).sum()
        return terms
