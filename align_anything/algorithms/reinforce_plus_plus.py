"""REINFORCE++: returns of single responses, whitened over the whole step, with PPO's surrogate."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from align_anything.algorithms.base import ALGORITHMS
from align_anything.algorithms.kl_reward import TokenRewards
from align_anything.algorithms.online import Experience, ReduceSum, State
from align_anything.losses.advantages import discounted_sums
from align_anything.losses.moments import mean_and_variance, moments, whiten


@ALGORITHMS.register('reinforce_plus_plus')
class ReinforcePlusPlus(TokenRewards):
    """REINFORCE++ (Hu et al., 2025, arXiv:2501.03262)."""

    name: ClassVar[str] = 'reinforce_plus_plus'

    gamma: float = Field(1.0, gt=0, le=1, description='Discount of a reward for each token that it lies ahead.')

    def advantages(self, experience: Experience, reduce_sum: ReduceSum, state: State) -> dict[str, Tensor]:
        returns = discounted_sums(self.token_rewards(experience), experience.segments, self.gamma)
        return {'advantage': whitened(returns, reduce_sum)}


def whitened(values: Tensor, reduce_sum: ReduceSum) -> Tensor:
    """Numbers of tokens `(N,)` with mean 0 and deviation 1 over the tokens of all ranks."""
    return whiten(values, *mean_and_variance(reduce_sum(moments(values, values.new_ones(len(values))))))
