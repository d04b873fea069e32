"""REINFORCE leave-one-out: each response against the mean of the others to its prompt."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, PositiveInt
from torch import Tensor

from align_anything.algorithms.base import ALGORITHMS
from align_anything.algorithms.kl_reward import KLReward
from align_anything.algorithms.online import Experience, GroupBased, ReduceSum, State
from align_anything.losses.advantages import rloo
from align_anything.losses.responses import response_sums


@ALGORITHMS.register('rloo')
class RLOO(GroupBased, KLReward):
    """RLOO (Ahmadian et al., 2024, arXiv:2402.14740): the response is one action, its score the reward.

    The divergence from the reference, summed over the response, is taken off the score.
    """

    name: ClassVar[str] = 'rloo'

    num_generations: PositiveInt = Field(4, ge=2, description='RLOO group size: responses for each prompt.')

    def advantages(self, experience: Experience, reduce_sum: ReduceSum, state: State) -> dict[str, Tensor]:
        penalties = response_sums(self.kl_of(experience), experience.segments, len(experience.scores))
        kl_coeff = self.current_kl_coeff(experience, reduce_sum, state)
        advantages = rloo(experience.scores - kl_coeff * penalties, experience.groups)
        return {'advantage': advantages[experience.segments]}
