"""Group relative policy optimisation: each response against the others to its prompt, without a critic."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from align_anything.algorithms.base import ALGORITHMS
from align_anything.algorithms.online import Experience, GroupBased, KLEstimator, ReduceSum, State
from align_anything.algorithms.policy_gradient import PolicyGradient
from align_anything.algorithms.referring import Reference
from align_anything.configs.effects import Effects, excludes, needs
from align_anything.core.types import Batch, Need, Scored
from align_anything.losses.advantages import group_relative
from align_anything.losses.aggregation import Aggregation
from align_anything.losses.moments import mean_and_variance, moments
from align_anything.losses.policy_gradient import cispo_loss, guarded_ratios, trusted_loss

UNCLIPPED = excludes(
    'train_cfgs.loss_type',
    'flow_dppo',
    why='it means nothing with loss_type: flow_dppo, which clips no ratio; give max_drift.',
)
OF_STEPS = ('grpo_guard', 'flow_dppo')
"""Losses that read how far denoising steps have moved."""


@ALGORITHMS.register('grpo')
class GRPO(GroupBased, PolicyGradient, Reference):
    """GRPO (Shao et al., 2024, arXiv:2402.03300), and by its settings Dr. GRPO, DAPO, GSPO, CISPO and Flow-GRPO.

    - Dr. GRPO: `scale_rewards: none`, `loss_aggregation: sequence-mean-token-sum-norm`, `beta: 0`.
    - DAPO: `clip_range_high: 0.28`, `loss_aggregation: token-mean`, `overlong_buffer`, `dynamic_sampling_rounds`,
      `beta: 0`.
    - GSPO: `importance_level: sequence`, with much smaller clip ranges.
    - CISPO: `loss_type: cispo`.
    - Flow-GRPO on denoising steps: `scale_rewards: batch`, `loss_aggregation: token-mean`, `clip_range_advantage: 5`,
      clip ranges of 1e-4 and less; GRPO-Guard and Flow-DPPO: `loss_type: grpo_guard` and `flow_dppo`.
    """

    name: ClassVar[str] = 'grpo'
    takes_effect: ClassVar[Effects] = {
        'clip_range_ratio': (
            excludes(
                'train_cfgs.loss_type',
                'cispo',
                why='it means nothing with loss_type: cispo, which has an upper bound alone; give clip_range_high.',
            ),
            UNCLIPPED,
        ),
        **dict.fromkeys(('clip_range_high', 'clip_range_dual'), UNCLIPPED),
        'max_drift': needs('train_cfgs.loss_type', 'flow_dppo'),
        'kl_estimator': needs('train_cfgs.beta'),
    }

    num_generations: PositiveInt = Field(10, ge=2, description='GRPO group size: responses for each prompt.')
    beta: NonNegativeFloat = Field(0.01, description='KL coefficient of the loss. With 0 there is no reference.')
    kl_estimator: KLEstimator = Field('k3', description='Estimator of that KL.')
    use_bias_correction_kl: bool = Field(
        False,
        description='Weighs that KL by the importance ratio, whose gradient then counts too: with k3 and ratios of '
        'tokens it is that of the reverse KL, unbiased (DeepSeek-V3.2; the default in TRL, not in the GRPO paper).',
    )
    scale_rewards: Literal['group', 'batch', 'none'] = Field(
        'group',
        description='Standard deviation that scales advantages: of their group, of the batch (one step), or none.',
    )
    clip_range_advantage: PositiveFloat | None = Field(
        None, description='Clip range of advantages; 5 in Flow-GRPO. null clips none.'
    )
    loss_type: Literal['ppo', 'cispo', 'grpo_guard', 'flow_dppo'] = Field(
        'ppo',
        description='Clips the surrogate (ppo), or the weight of each token but never its gradient (cispo). For '
        'denoising steps alone: ppo with ratios that no bias holds below 1, alike at all noise levels (grpo_guard), or '
        'no clipping, but leaving out steps that have moved by max_drift and would move on (flow_dppo).',
    )
    max_drift: PositiveFloat = Field(
        1e-5, description='KL divergence of a denoising step from the one that sampled it that flow_dppo allows.'
    )
    loss_aggregation: Aggregation = Field(
        'sequence-mean-token-mean', description='Aggregation of token losses; token-mean is DAPO.'
    )

    @model_validator(mode='after')
    def _reads_its_clips(self) -> GRPO:
        if self.loss_type == 'cispo' and (self.importance_level != 'token' or self.clip_range_dual is not None):
            raise ValueError('loss_type cispo weighs single tokens: leave importance_level and clip_range_dual out')
        if self.loss_type in OF_STEPS and self.importance_level != 'token':
            raise ValueError(f'loss_type {self.loss_type} compares single denoising steps: leave importance_level out')
        return self

    @model_validator(mode='after')
    def _has_a_kl(self) -> GRPO:
        if self.use_bias_correction_kl and not self.beta:
            raise ValueError('use_bias_correction_kl corrects the KL divergence in the loss, but beta is 0')
        return self

    @property
    def kl_in_loss(self) -> tuple[float, str]:
        return self.beta, self.kl_estimator

    @property
    def corrects_kl(self) -> bool:
        return self.use_bias_correction_kl

    def advantages(self, experience: Experience, reduce_sum: ReduceSum, state: State) -> dict[str, Tensor]:
        compared = experience.compared
        returns = compared.returns(experience.scores, experience.turn_rewards)
        _, variance = mean_and_variance(reduce_sum(moments(returns, returns.new_ones(len(returns)))))
        advantages = group_relative(returns, compared.groups, scale=self.scale_rewards, batch_std=variance.sqrt())
        if self.clip_range_advantage is not None:
            advantages = advantages.clamp(-self.clip_range_advantage, self.clip_range_advantage)
        return {'advantage': advantages[compared.of_units]}

    def problems_with(self, meets: Need) -> list[str]:
        found = super().problems_with(meets)
        if meets != 'transition' and self.loss_type in OF_STEPS:
            found.append(f'train_cfgs.loss_type: {self.loss_type} is for denoising steps alone; choose ppo or cispo.')
        return found

    @property
    def companions(self) -> tuple[str, ...]:
        return (*super().companions, *(('old',) if self.loss_type in OF_STEPS else ()))

    def ratios(self, batch: Batch, scored: Scored) -> Tensor:
        if self.loss_type == 'grpo_guard':
            std = batch.values_of('step_std')
            return guarded_ratios(scored.values, batch.values_of('old'), scored.drift, std, batch.weights)
        return super().ratios(batch, scored)

    def policy_loss(self, batch: Batch, scored: Scored, ratios: Tensor, advantages: Tensor, weights: Tensor) -> Tensor:
        if self.loss_type == 'cispo':
            return cispo_loss(scored.values, batch.values_of('old'), advantages, weights, high=self.clip.high)
        if self.loss_type == 'flow_dppo':
            return trusted_loss(ratios, advantages, weights, scored.drift, self.max_drift)
        if self.loss_type == 'grpo_guard':
            weights = weights / batch.values_of('step_length')
        return super().policy_loss(batch, scored, ratios, advantages, weights)
