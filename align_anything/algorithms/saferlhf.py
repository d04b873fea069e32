"""Safe RLHF: reward under a bound on cost, by PPO with two critics, or by groups, and a Lagrange multiplier."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from align_anything.algorithms.base import ALGORITHMS
from align_anything.algorithms.critic import Critic
from align_anything.algorithms.online import Experience, ReduceSum, State
from align_anything.algorithms.ppo import PPO
from align_anything.configs.effects import Effects, needs
from align_anything.configs.online import SafeRunCfgs
from align_anything.configs.schema import RunCfgs
from align_anything.core.types import Need
from align_anything.losses.advantages import rloo
from align_anything.losses.lagrange import lagrangian_advantages, recent, stepped_log_multiplier, updated_log_multiplier

UPDATES = {'logarithm': updated_log_multiplier, 'linear': stepped_log_multiplier}
WITH_CRITICS = needs('train_cfgs.advantage_estimator', 'gae')


@ALGORITHMS.register('saferlhf')
class SafeRLHF(PPO):
    """PPO-Lagrangian (Dai et al., 2023, arXiv:2310.12773): the multiplier rises while responses cost too much.

    Half of the penalty for leaving the reference is taken from the rewards, half is added to the costs. With
    `advantage_estimator: rloo` there are no critics: each response is compared with the others to its prompt, in its
    reward and in its cost.
    """

    name: ClassVar[str] = 'saferlhf'
    trains: ClassVar[tuple[str, ...]] = ('policy', 'reward_critic', 'cost_critic')
    run_cfgs: ClassVar[type[RunCfgs]] = SafeRunCfgs
    takes_effect: ClassVar[Effects] = {
        **dict.fromkeys(
            (
                *('critic_lr', 'critic_lr_scheduler_type', 'critic_weight_decay', 'critic_gradient_checkpointing'),
                'critic_warmup_steps',
                *('gamma', 'gae_lambda', 'bootstrap_truncated', 'clip_range_value', 'clip_range_score'),
                *(f'model_cfgs.{role}_critic_model_name_or_path' for role in ('reward', 'cost')),
            ),
            WITH_CRITICS,
        ),
        'critic_lr_warmup_ratio': (PPO.takes_effect['critic_lr_warmup_ratio'], WITH_CRITICS),
    }

    of_events: ClassVar[Mapping[str, Any]] = {
        'threshold': 0.1,
        'lambda_init': 0.3,
        'lambda_max': 1.0,
        'lambda_update': 'linear',
    }

    advantage_estimator: Literal['gae', 'rloo'] = Field(
        'gae',
        description='How advantages are estimated: by critics of reward and of cost (gae), or by the other responses '
        'to the prompt (rloo), which needs num_generations of 2 or more. Of denoisers the default is rloo.',
    )
    threshold: float = Field(
        -0.5,
        description='Cost threshold: mean cost that is allowed; the cost model puts 0 between safe and not. Where the '
        'environment says what episodes cost, it is in costs of an episode, and the default is 0.1.',
    )
    lambda_init: PositiveFloat = Field(
        10.0, description='Initial Lagrange multiplier. Where the environment says what costs, the default is 0.3.'
    )
    lambda_max: PositiveFloat = Field(
        20.0, description='Largest Lagrange multiplier. Where the environment says what costs, the default is 1.'
    )
    lambda_update: Literal['logarithm', 'linear'] = Field(
        'logarithm',
        description='What is stepped: the logarithm of the multiplier, which rises the faster the larger it is, or the '
        'multiplier itself, which falls as fast as it rises. Where the environment says what costs, the default is '
        'linear.',
    )
    lambda_lr: PositiveFloat = Field(0.1, description='Learning rate of the Lagrange multiplier, or of its logarithm.')
    lambda_update_delay_steps: int = Field(1, ge=0, description='Rollouts before the first update of the multiplier.')
    episode_cost_window_size: PositiveInt = Field(
        128, description='Most recent responses whose mean cost the multiplier follows.'
    )

    def advantages(self, experience: Experience, reduce_sum: ReduceSum, state: State) -> dict[str, Tensor]:
        multiplier = math.exp(self._follow(experience, state))
        half = self.current_kl_coeff(experience, reduce_sum, state) / 2
        if self.advantage_estimator == 'rloo':
            compared, penalties = experience.compared, half * self.kl_of(experience)
            rewards = compared.returns(experience.scores, experience.turn_rewards, -penalties)
            costs = compared.returns(experience.costs, experience.turn_costs, penalties)
            advantages = lagrangian_advantages(
                rloo(rewards, compared.groups), rloo(costs, compared.groups), multiplier
            )[compared.of_units]
            return {'advantage': self.brought_to_scale(advantages, reduce_sum)}
        rewards, reward_returns = self.estimated(
            experience,
            'reward_critic',
            self.token_rewards(experience, experience.scores, half, experience.turn_rewards),
        )
        # Of opposite sign: costs are subtracted from rewards below.
        costs, cost_returns = self.estimated(
            experience,
            'cost_critic',
            self.token_rewards(experience, experience.costs, -half, experience.turn_costs),
        )
        advantages = lagrangian_advantages(rewards, costs, multiplier)
        return {
            'advantage': self.brought_to_scale(advantages, reduce_sum),
            'returns/reward_critic': reward_returns,
            'returns/cost_critic': cost_returns,
        }

    @property
    def critics(self) -> Mapping[str, Critic]:
        return super().critics if self.advantage_estimator == 'gae' else {}

    def problems_with(self, meets: Need) -> list[str]:
        found = super().problems_with(meets)
        if self.advantage_estimator == 'rloo' and self.num_generations < 2:
            found.append(
                'train_cfgs.advantage_estimator: rloo compares the responses to a prompt with each other, and '
                f'num_generations is {self.num_generations}: give 2 or more.'
            )
        return found

    def _follow(self, experience: Experience, state: State) -> float:
        """Updates the recent costs and the logarithm of the multiplier, which it returns."""
        state['costs'] = recent(state.get('costs', []), experience.all_costs, self.episode_cost_window_size)
        state['rollouts'] = state.get('rollouts', 0) + 1
        logarithm = state.get('log_multiplier', math.log(self.lambda_init))
        if state['rollouts'] > self.lambda_update_delay_steps and state['costs']:
            state['mean_cost'] = sum(state['costs']) / len(state['costs'])
            logarithm = UPDATES[self.lambda_update](
                logarithm,
                state['mean_cost'],
                learning_rate=self.lambda_lr,
                threshold=self.threshold,
                maximum=self.lambda_max,
            )
        state['log_multiplier'] = logarithm
        state['multiplier'] = math.exp(logarithm)
        return logarithm
