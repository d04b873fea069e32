"""REINFORCE leave-one-out: each response against the mean of the others to its prompt."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, PositiveInt
from torch import Tensor

from align_anything.algorithms.base import ALGORITHMS
from align_anything.algorithms.kl_reward import KLReward
from align_anything.algorithms.online import Experience, GroupBased, ReduceSum, State
from align_anything.losses.advantages import rloo
from align_anything.losses.aggregation import Aggregation
from align_anything.losses.policy_gradient import ImportanceLevel


@ALGORITHMS.register('rloo')
class RLOO(GroupBased, KLReward):
    """RLOO (Ahmadian et al., 2024, arXiv:2402.14740): the response is one action, its score the reward.

    The divergence from the reference, summed over the response, is taken off the score. The loss is the mean over
    responses of PPO's surrogate of each, by the likelihood ratio of the whole response, as in TRL. With
    `importance_level: token` and `loss_aggregation: token-mean` each token is an action of its own, with the advantage
    of its response.
    """

    name: ClassVar[str] = 'rloo'

    num_generations: PositiveInt = Field(4, ge=2, description='RLOO group size: responses for each prompt.')
    importance_level: ImportanceLevel = Field(
        'sequence_product',
        description='Level of the importance ratio: of the whole response, as the product of its tokens '
        '(sequence_product), or of each token; sequence and sequence_token as in GSPO.',
    )
    loss_aggregation: Aggregation = Field(
        'sequence-mean-token-mean',
        description='Aggregation of the losses: mean over responses; token-mean goes with importance_level token.',
    )
    rollout_correction_level: Literal['token', 'sequence'] = Field(
        'sequence', description='Level of the weights that correct for rollouts: of the whole response, or of tokens.'
    )

    def advantages(self, experience: Experience, reduce_sum: ReduceSum, state: State) -> dict[str, Tensor]:
        compared, kl_coeff = experience.compared, self.current_kl_coeff(experience, reduce_sum, state)
        penalties = -kl_coeff * self.kl_of(experience)
        returns = compared.returns(experience.scores, experience.turn_rewards, penalties)
        return {'advantage': rloo(returns, compared.groups)[compared.of_units]}
