"""Proximal policy optimisation: advantages are estimated with a critic (GAE)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor

from align_anything.algorithms.base import ALGORITHMS
from align_anything.algorithms.critic import Critic
from align_anything.algorithms.kl_reward import TokenRewards
from align_anything.algorithms.online import Experience, ReduceSum, State
from align_anything.algorithms.reinforce_plus_plus import whitened
from align_anything.configs.effects import Effects, excludes
from align_anything.configs.online import CriticRunCfgs
from align_anything.configs.schema import NO_WARM_UP, RunCfgs, ScheduleType, TrainCfgs
from align_anything.core.types import Need
from align_anything.losses.advantages import gae


@ALGORITHMS.register('ppo')
class PPO(TokenRewards):
    """PPO with a critic, generalized advantage estimation, and the KL penalty in the reward.

    As in Ouyang et al., 2022, arXiv:2203.02155, and Ziegler et al., 2019, arXiv:1909.08593.
    """

    name: ClassVar[str] = 'ppo'
    trains: ClassVar[tuple[str, ...]] = ('policy', 'reward_critic')
    run_cfgs: ClassVar[type[RunCfgs]] = CriticRunCfgs
    adapter_rates: ClassVar[tuple[str, ...]] = ('learning_rate', 'critic_lr')
    takes_effect: ClassVar[Effects] = {
        'critic_lr_warmup_ratio': excludes(
            'train_cfgs.critic_lr_scheduler_type', 'constant', why=NO_WARM_UP, off=(0.0,)
        ),
    }
    other_names: ClassVar[Mapping[str, str]] = {'cliprange_value': 'clip_range_value', 'lam': 'gae_lambda'}

    gamma: float = Field(1.0, gt=0, le=1, description='Discount factor, per token.')
    gae_lambda: float = Field(0.95, ge=0, le=1, description='Lambda of generalized advantage estimation (GAE).')
    bootstrap_truncated: bool = Field(
        False,
        description='Adds the bootstrap value of the critic to a response that was clipped at max_new_tokens. Off, it '
        'counts as ended there.',
    )
    whiten_advantages: bool = Field(
        True, description='Whitens advantages over all tokens of a step: mean 0, standard deviation 1.'
    )
    clip_range_value: PositiveFloat | None = Field(
        5.0, description='Value clip range, around the values at the rollout. null clips none.'
    )
    critic_lr: NonNegativeFloat = Field(5e-6, description='Peak learning rate of the critic.')
    critic_lr_scheduler_type: ScheduleType = Field(
        'constant_with_warmup', description='Shape of the learning rate of the critic.'
    )
    critic_lr_warmup_ratio: float = Field(
        0.03, ge=0, le=1, description="Share of the steps over which the critic's learning rate rises from zero."
    )
    critic_warmup_steps: int = Field(
        0, ge=0, description='Optimizer steps at the beginning in which critics learn and the policy waits (warm-up).'
    )
    critic_weight_decay: NonNegativeFloat = Field(0.0, description='Decoupled weight decay of the critic.')
    critic_gradient_checkpointing: bool | None = Field(
        None,
        description='Recomputes activations of the critic in its backward pass. null is as gradient_checkpointing.',
    )

    @property
    def critics(self) -> Mapping[str, Critic]:
        roles = (role for role in self.trains if role != 'policy')
        return {role: Critic(role=role, clip_range_value=self.clip_range_value) for role in roles}

    def train_cfgs_of_critics(self, train: TrainCfgs) -> TrainCfgs:
        checkpointing = self.critic_gradient_checkpointing
        changed = {
            'learning_rate': self.critic_lr,
            'lr_scheduler_type': self.critic_lr_scheduler_type,
            'lr_warmup_ratio': self.critic_lr_warmup_ratio,
            'weight_decay': self.critic_weight_decay,
            'gradient_checkpointing': train.gradient_checkpointing if checkpointing is None else checkpointing,
        }
        return train.model_copy(update=changed)

    def problems_with(self, meets: Need) -> list[str]:
        found = super().problems_with(meets)
        if meets == 'transition' and self.critics and self.bootstraps:
            found.append(
                'train_cfgs.bootstrap_truncated is for responses that may be clipped; media never are: leave it out.'
            )
        return found

    @property
    def warmup(self) -> int:
        return self.critic_warmup_steps if self.critics else 0

    @property
    def bootstraps(self) -> bool:
        return self.bootstrap_truncated

    def advantages(self, experience: Experience, reduce_sum: ReduceSum, state: State) -> dict[str, Tensor]:
        kl_coeff = self.current_kl_coeff(experience, reduce_sum, state)
        rewards = self.token_rewards(experience, experience.scores, kl_coeff, experience.turn_rewards)
        advantages, returns = self.estimated(experience, 'reward_critic', rewards)
        return {'advantage': self.brought_to_scale(advantages, reduce_sum), 'returns/reward_critic': returns}

    def estimated(self, experience: Experience, critic: str, rewards: Tensor) -> tuple[Tensor, Tensor]:
        """Advantages and returns of each token, `(N,)`, by the values of a critic and the rewards, `(N,)`."""
        bootstrap = experience.bootstrap[critic].where(~experience.finished, 0.0) if self.bootstraps else None
        return gae(
            experience.values[critic],
            rewards,
            experience.segments,
            gamma=self.gamma,
            lam=self.gae_lambda,
            bootstrap=bootstrap,
        )

    def brought_to_scale(self, advantages: Tensor, reduce_sum: ReduceSum) -> Tensor:
        """The advantages, `(N,)`, whitened if the settings ask for it."""
        return whitened(advantages, reduce_sum) if self.whiten_advantages else advantages
