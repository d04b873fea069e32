"""What the online algorithms share that take a KL penalty to the reference off the reward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from align_anything.algorithms.online import Experience, KLEstimator, ReduceSum, State
from align_anything.algorithms.policy_gradient import PolicyGradient
from align_anything.algorithms.referring import Reference
from align_anything.configs.effects import Effects, needs
from align_anything.losses.advantages import token_rewards
from align_anything.losses.kl import KL_ESTIMATORS, adapted_kl_coeff


class KLReward(PolicyGradient, Reference):
    """Base of the algorithms with a KL penalty to the reference in the reward."""

    takes_effect: ClassVar[Effects] = {
        'kl_estimator': needs('train_cfgs.kl_coeff'),
        'kl_horizon': needs('train_cfgs.kl_target'),
        'kl_loss_estimator': needs('train_cfgs.kl_loss_coeff'),
    }
    other_names: ClassVar[Mapping[str, str]] = {
        'kl_coef': 'kl_coeff',
        'init_kl_coef': 'kl_coeff',
        'reward_model_kl_coef': 'kl_coeff',
    }

    kl_coeff: NonNegativeFloat = Field(
        0.02,
        description='KL penalty coefficient of the reward. With 0 here and in kl_loss_coeff there is no reference.',
    )
    kl_estimator: KLEstimator = Field('k1', description='KL estimator at each token in the reward.')
    kl_target: PositiveFloat | None = Field(
        None,
        description='Target KL of the adaptive KL controller, in nats for each response: after each rollout kl_coeff '
        'rises if there was more, and falls if there was less. null leaves kl_coeff as it is.',
    )
    kl_horizon: PositiveInt = Field(
        10000,
        description='Horizon of the adaptive KL controller: responses over which kl_coeff moves by a fifth, at most.',
    )
    kl_loss_coeff: NonNegativeFloat = Field(
        0.0, description='KL loss coefficient, beside or instead of the penalty in the reward.'
    )
    kl_loss_estimator: KLEstimator = Field(
        'k3', description='KL estimator in the loss; the gradient of k1 is zero in expectation.'
    )

    @model_validator(mode='after')
    def _has_what_moves(self) -> KLReward:
        if self.kl_target is not None and not self.kl_coeff:
            raise ValueError('kl_target moves kl_coeff, which is 0 and would stay so: give the one to begin with')
        return self

    @property
    def refers(self) -> bool:
        return bool(self.kl_coeff or self.kl_loss_coeff)

    @property
    def reads_old(self) -> bool:
        return bool(self.kl_coeff) or super().reads_old

    @property
    def kl_in_loss(self) -> tuple[float, str]:
        return self.kl_loss_coeff, self.kl_loss_estimator

    def current_kl_coeff(self, experience: Experience, reduce_sum: ReduceSum, state: State) -> float:
        """The KL coefficient of this rollout: `kl_coeff`, or with `kl_target` what it has come to."""
        if self.kl_target is None:
            return self.kl_coeff
        kl_coeff = state.get('kl_coeff', self.kl_coeff)
        local = [float(self.kl_of(experience).double().sum()), float(len(experience.scores))]
        total, responses = reduce_sum(torch.tensor(local, dtype=torch.float64)).tolist()
        if responses:
            state['response_kl'] = total / responses
            gain = min(responses / self.kl_horizon, 1.0)
            state['kl_coeff'] = adapted_kl_coeff(kl_coeff, state['response_kl'], target=self.kl_target, gain=gain)
        return kl_coeff

    def kl_of(self, experience: Experience) -> Tensor:
        """The estimated divergence at each token, `(N,)`; zeros where none is taken off the reward."""
        if not self.kl_coeff:
            return experience.scores.new_zeros(len(experience.segments))
        return KL_ESTIMATORS[self.kl_estimator](experience.logprobs, experience.reference)


class TokenRewards(KLReward):
    """Base of those among them that credit rewards to the tokens before them."""

    clip_range_score: PositiveFloat | None = Field(
        50.0, description='Clip range of the reward at each token, the score at the last one included. null clips none.'
    )

    def token_rewards(
        self, experience: Experience, scores: Tensor, kl_coeff: float, given: Tensor | None = None
    ) -> Tensor:
        """The reward at each token, `(N,)`, of responses with these scores, `(R,)`, some `given` before."""
        kl, segments = self.kl_of(experience), experience.segments
        return token_rewards(scores, kl, segments, kl_coeff=kl_coeff, clip_range=self.clip_range_score, given=given)
