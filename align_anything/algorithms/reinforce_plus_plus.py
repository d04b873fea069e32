"""REINFORCE++: returns of single responses, whitened over the optimizer step, with PPO's surrogate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator
from torch import Tensor

from align_anything.algorithms.base import ALGORITHMS
from align_anything.algorithms.kl_reward import TokenRewards
from align_anything.algorithms.online import Experience, GroupBased, ReduceSum, State
from align_anything.losses.advantages import discounted_sums, group_relative, rloo
from align_anything.losses.moments import mean_and_variance, moments, whiten

COMPARED: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {
        'reinforce': lambda scores, groups: scores,
        'reinforce_baseline': partial(group_relative, scale='none'),
        'rloo': rloo,
        'group_norm': partial(group_relative, scale='group'),
    }
)
"""What an estimator makes of scores, `(R,)`, given the prompt of each, `(R,)`, before it credits them to tokens."""


@ALGORITHMS.register('reinforce_plus_plus')
class ReinforcePlusPlus(GroupBased, TokenRewards):
    """REINFORCE++ (Hu et al., 2025, arXiv:2501.03262), and as `reinforce_baseline` its form with a baseline.

    `rloo` and `group_norm` credit to tokens, together with the divergence from the reference, what those compare. That
    is of one scale already and is not whitened, as in OpenRLHF.
    """

    name: ClassVar[str] = 'reinforce_plus_plus'

    advantage_estimator: Literal[tuple(COMPARED)] = Field(
        'reinforce',
        description='Advantage estimator: baseline of a score is none (reinforce), the mean of its group '
        '(reinforce_baseline), the mean of the others in it (rloo), or that of its group over the standard deviation '
        '(group_norm). The first two are whitened over all tokens of the step.',
    )
    gamma: float = Field(1.0, gt=0, le=1, description='Discount factor, per token.')

    @field_validator('advantage_estimator', mode='before')
    @classmethod
    def _needs_no_critic(cls, value: Any) -> Any:
        if value == 'gae':
            raise ValueError(f'gae needs a critic: run the algorithm ppo, or choose among {", ".join(COMPARED)}')
        return value

    @model_validator(mode='after')
    def _has_its_group(self) -> ReinforcePlusPlus:
        alone = self.advantage_estimator == 'reinforce'
        if not alone and self.num_generations < 2:
            raise ValueError(f'advantage_estimator {self.advantage_estimator} needs num_generations of 2 or more')
        if alone and self.dynamic_sampling_rounds:
            raise ValueError(
                'dynamic_sampling_rounds: advantage_estimator reinforce does not compare the responses to a prompt'
            )
        return self

    def problems_of_turns(self) -> list[str]:
        found = super().problems_of_turns()
        if self.advantage_estimator != 'reinforce':
            found.append(
                f'environment_cfgs.credit: train_cfgs.advantage_estimator {self.advantage_estimator} compares whole '
                'responses; choose reinforce, or the algorithm grpo or rloo.'
            )
        return found

    def advantages(self, experience: Experience, reduce_sum: ReduceSum, state: State) -> dict[str, Tensor]:
        scores = COMPARED[self.advantage_estimator](experience.scores, experience.groups)
        kl_coeff = self.current_kl_coeff(experience, reduce_sum, state)
        rewards = self.token_rewards(experience, scores, kl_coeff, experience.turn_rewards)
        returns = discounted_sums(rewards, experience.segments, self.gamma)
        on_scale = self.advantage_estimator in ('rloo', 'group_norm')
        return {'advantage': returns if on_scale else whitened(returns, reduce_sum)}


def whitened(values: Tensor, reduce_sum: ReduceSum) -> Tensor:
    """Numbers of tokens `(N,)` with mean 0 and deviation 1 over the tokens of all ranks."""
    return whiten(values, *mean_and_variance(reduce_sum(moments(values, values.new_ones(len(values))))))
