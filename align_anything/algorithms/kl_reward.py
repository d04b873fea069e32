"""What the online algorithms share that take the divergence from the reference off the reward."""

from __future__ import annotations

from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor

from align_anything.algorithms.online import Experience, KLEstimator
from align_anything.algorithms.policy_gradient import PolicyGradient
from align_anything.algorithms.referring import Reference
from align_anything.losses.advantages import token_rewards
from align_anything.losses.kl import KL_ESTIMATORS


class KLReward(PolicyGradient, Reference):
    """Base of the algorithms whose reward pays for every token that the reference would not have drawn."""

    kl_coeff: NonNegativeFloat = Field(
        0.02, description='What a nat of divergence from the reference costs in reward. With 0 there is no reference.'
    )
    kl_estimator: KLEstimator = Field('k1', description='Estimator of the divergence at each token.')

    @property
    def refers(self) -> bool:
        return bool(self.kl_coeff)

    def kl_of(self, experience: Experience) -> Tensor:
        """The estimated divergence at each token, `(N,)`; zeros without a reference."""
        if experience.reference is None:
            return experience.logprobs.new_zeros(len(experience.logprobs))
        return KL_ESTIMATORS[self.kl_estimator](experience.logprobs, experience.reference)


class TokenRewards(KLReward):
    """Base of those among them that credit rewards to the tokens before them."""

    clip_range_score: PositiveFloat | None = Field(
        50.0, description='Bound of the reward at each token, the score at the last one included. null bounds none.'
    )

    def token_rewards(self, experience: Experience) -> Tensor:
        """The reward at each token, `(N,)`."""
        return token_rewards(
            experience.scores,
            self.kl_of(experience),
            experience.segments,
            kl_coeff=self.kl_coeff,
            clip_range=self.clip_range_score,
        )
