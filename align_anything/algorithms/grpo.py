"""Group relative policy optimisation: each response against the others to its prompt, without a critic."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator
from torch import Tensor

from align_anything.algorithms.base import ALGORITHMS
from align_anything.algorithms.online import Experience, GroupBased, KLEstimator, ReduceSum, State
from align_anything.algorithms.policy_gradient import PolicyGradient
from align_anything.algorithms.referring import Reference
from align_anything.configs.effects import Effects, excludes, needs
from align_anything.losses.advantages import group_relative
from align_anything.losses.aggregation import Aggregation
from align_anything.losses.moments import mean_and_variance, moments
from align_anything.losses.policy_gradient import cispo_loss


@ALGORITHMS.register('grpo')
class GRPO(GroupBased, PolicyGradient, Reference):
    """GRPO (Shao et al., 2024, arXiv:2402.03300), and by its settings Dr. GRPO, DAPO, GSPO and CISPO.

    - Dr. GRPO: `scale_rewards: none`, `loss_aggregation: sequence-mean-token-sum-norm`, `beta: 0`.
    - DAPO: `clip_range_high: 0.28`, `loss_aggregation: token-mean`, `overlong_buffer`, `dynamic_sampling_rounds`,
      `beta: 0`.
    - GSPO: `importance_level: sequence`, with much smaller clip ranges.
    - CISPO: `loss_type: cispo`.
    """

    name: ClassVar[str] = 'grpo'
    takes_effect: ClassVar[Effects] = {
        'clip_range_ratio': excludes(
            'train_cfgs.loss_type',
            'cispo',
            why='it means nothing with loss_type: cispo, which has an upper bound alone; give clip_range_high.',
        ),
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
    loss_type: Literal['ppo', 'cispo'] = Field(
        'ppo', description='Clips the surrogate (ppo), or the weight of each token but never its gradient (cispo).'
    )
    loss_aggregation: Aggregation = Field(
        'sequence-mean-token-mean', description='Aggregation of token losses; token-mean is DAPO.'
    )

    @model_validator(mode='after')
    def _reads_its_clips(self) -> GRPO:
        if self.loss_type == 'cispo' and (self.importance_level != 'token' or self.clip_range_dual is not None):
            raise ValueError('loss_type cispo weighs single tokens: leave importance_level and clip_range_dual out')
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
        scores = experience.scores
        _, variance = mean_and_variance(reduce_sum(moments(scores, scores.new_ones(len(scores)))))
        advantages = group_relative(scores, experience.groups, scale=self.scale_rewards, batch_std=variance.sqrt())
        return {'advantage': advantages[experience.segments]}

    def policy_loss(self, logprobs: Tensor, old: Tensor, ratios: Tensor, advantages: Tensor, weights: Tensor) -> Tensor:
        if self.loss_type == 'cispo':
            return cispo_loss(logprobs, old, advantages, weights, high=self.clip.high)
        return super().policy_loss(logprobs, old, ratios, advantages, weights)
