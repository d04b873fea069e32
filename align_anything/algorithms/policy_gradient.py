"""Policy gradients on sampled responses: ratios, clipping, aggregation, and a divergence in the loss."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from align_anything.algorithms.online import OF_ANSWERS, Online
from align_anything.configs.effects import Effects, needs, writing
from align_anything.configs.online import PolicyRunCfgs
from align_anything.configs.schema import RunCfgs
from align_anything.core.types import ACTION, MEDIA_KINDS, Batch, MediaKind, Need, Scored
from align_anything.losses.advantages import weighed_by_kind
from align_anything.losses.aggregation import Aggregation, aggregation_weights
from align_anything.losses.kl import KL_ESTIMATORS
from align_anything.losses.policy_gradient import (
    Clip,
    ImportanceLevel,
    importance_ratios,
    policy_metrics,
    ppo_loss,
    rollout_weights,
)
from align_anything.losses.sft import sft_loss


class PolicyGradient(Online):
    """Base of the algorithms that raise what had an advantage and lower what had none.

    What the loss reads of a unit is `advantage`, `old`, `rollout` and, where there is a reference, `reference`: the
    last three are its log-probabilities under the policy that sampled it, by the trainer and by the rollout engine, and
    under the reference. Responses without an advantage are given ones, which are supervised.
    """

    with_entropy: ClassVar[bool] = True
    told_by_kind: ClassVar[tuple[str, ...]] = (
        *('policy_loss', 'entropy', 'kl', 'ptx_loss', 'ratio', 'approx_kl'),
        *('clipped_low', 'clipped_high', 'clipped_dual'),
    )
    run_cfgs: ClassVar[type[RunCfgs]] = PolicyRunCfgs
    takes_effect: ClassVar[Effects] = {
        'ptx_coeff': needs('data_cfgs.ptx_datasets', off=(0.0,)),
        'data_cfgs.ptx_datasets': needs('train_cfgs.ptx_coeff'),
        **dict.fromkeys(OF_ANSWERS, needs('data_cfgs.ptx_datasets')),
        'rollout_correction_level': needs('train_cfgs.rollout_correction_cap'),
        'emitted_advantage_weights': writing(*MEDIA_KINDS, ACTION),
    }
    other_names: ClassVar[Mapping[str, str]] = {
        'epsilon': 'clip_range_ratio',
        'cliprange': 'clip_range_ratio',
        'epsilon_high': 'clip_range_high',
        'num_iterations': 'update_iters',
        'num_ppo_epochs': 'update_iters',
        'ppo_epochs': 'update_iters',
    }

    clip_range_ratio: PositiveFloat = Field(
        0.2, description='PPO clip range: the probability ratio is clipped to 1 - this and 1 + this.'
    )
    clip_range_high: PositiveFloat | None = Field(
        None, description='Upper PPO clip range (clip-higher, DAPO). null is clip_range_ratio.'
    )
    clip_range_dual: float | None = Field(
        None, gt=1, description='Dual-clip bound of the ratio of tokens with a negative advantage. null bounds none.'
    )
    importance_level: ImportanceLevel = Field(
        'token',
        description='Level of the importance ratio: each token; its sequence, as the geometric mean of its tokens '
        '(sequence, GSPO), that with gradients by token (sequence_token, GSPO-token), or their product, the ratio of '
        'the whole response (sequence_product, RLOO).',
    )
    loss_aggregation: Aggregation = Field(
        'token-mean',
        description='Aggregation of the token losses: mean over all tokens, or mean over responses of the mean '
        'of their tokens, or of their sum over constant_length.',
    )
    constant_length: PositiveInt | None = Field(
        None, description='What the sums of sequence-mean-token-sum-norm are divided by, such as max_new_tokens.'
    )
    entropy_coeff: NonNegativeFloat = Field(
        0.0, description='Entropy bonus coefficient: weight of the mean entropy in the loss.'
    )
    emitted_advantage_weights: dict[MediaKind | Literal['text'], NonNegativeFloat] = Field(
        {},
        description='What the advantage of a response is multiplied by at its units of each kind, such as '
        '`{text: 0.5}` where it reasons before it draws. A kind that is not named has 1.',
    )
    ptx_coeff: NonNegativeFloat = Field(
        16.0,
        description='PTX loss coefficient: weight of the negative log-likelihood of ptx_datasets, a token mean. '
        'Without those there is no such term.',
    )
    rollout_correction_cap: float | None = Field(
        2.0,
        gt=1,
        description='Cap of the truncated importance sampling weights, which correct for rollouts with other numerics, '
        'or older weights, than the trainer has. null corrects nothing.',
    )
    rollout_correction_level: Literal['token', 'sequence'] = Field(
        'token', description='Level of those weights: of each token, or of its sequence.'
    )

    @model_validator(mode='after')
    def _has_its_length(self) -> PolicyGradient:
        if (self.loss_aggregation == 'sequence-mean-token-sum-norm') != (self.constant_length is not None):
            raise ValueError('constant_length belongs to loss_aggregation sequence-mean-token-sum-norm: give both')
        return self

    @property
    def kl_in_loss(self) -> tuple[float, str]:
        """Weight and estimator of the divergence from the reference in the loss."""
        return 0.0, 'k3'

    @property
    def corrects_kl(self) -> bool:
        """Whether the importance ratio weighs the divergence in the loss, so that its gradient is unbiased."""
        return False

    @property
    def refers(self) -> bool:
        return bool(self.kl_in_loss[0])

    @property
    def needs(self) -> Need:
        return 'probability' if self.entropy_coeff else 'transition'

    @property
    def has_ratios(self) -> bool:
        return True

    @property
    def weighed_kinds(self) -> Collection[str]:
        return self.emitted_advantage_weights.keys()

    @property
    def supervises(self) -> bool:
        return bool(self.ptx_coeff)

    def without_supervision(self) -> PolicyGradient:
        return self.model_copy(update={'ptx_coeff': 0.0})

    @property
    def corrects(self) -> bool:
        return self.rollout_correction_cap is not None

    @property
    def clip(self) -> Clip:
        """The range in which ratios count."""
        high = self.clip_range_ratio if self.clip_range_high is None else self.clip_range_high
        return Clip(self.clip_range_ratio, high, self.clip_range_dual)

    def problems_with(self, meets: Need) -> list[str]:
        (weight, estimator), (_, usual) = self.kl_in_loss, type(self)().kl_in_loss
        found = super().problems_with(meets)
        if meets == 'transition' and weight and estimator != usual:
            found.append(
                f'the KL divergence of transitions is exact, and {estimator} estimates one: leave the estimator of the '
                'KL in the loss out.'
            )
        return found

    def problems_of_turns(self) -> list[str]:
        if self.importance_level in ('token', 'sequence_token'):
            return []
        return [
            f'environment_cfgs.credit: turns have advantages of their own, and train_cfgs.importance_level '
            f'{self.importance_level} is one ratio for all of them; choose token (with loss_aggregation token-mean) or '
            'sequence_token.'
        ]

    @property
    def companions(self) -> tuple[str, ...]:
        return ('reference',) if self.kl_in_loss[0] else ()

    def ratios(self, batch: Batch, scored: Scored) -> Tensor:
        """How much likelier each token has become, `(N,)`, with a gradient."""
        responses = (batch.segments, batch.num_responses)
        return importance_ratios(
            scored.values, batch.values_of('old'), batch.weights, *responses, self.importance_level
        )

    def policy_loss(self, batch: Batch, scored: Scored, ratios: Tensor, advantages: Tensor, weights: Tensor) -> Tensor:
        """The sum over tokens that is lowered, `()`, of numbers of tokens `(N,)`: by default PPO's surrogate."""
        return ppo_loss(ratios, advantages, weights, self.clip)

    def coefficients(self) -> dict[str, float]:
        kl, _ = self.kl_in_loss
        terms = {'policy_loss': 1.0, 'kl': kl, 'entropy': -self.entropy_coeff, 'ptx_loss': self.ptx_coeff}
        return {name: weight for name, weight in terms.items() if weight}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        sampled, nothing = self._sampled_counts(batch), batch.weights.new_zeros(())
        if not self.ptx_coeff:
            return sampled
        if 'advantage' in batch.per_unit:
            return {**sampled, 'ptx_loss': nothing}
        return {**dict.fromkeys(sampled, nothing), 'ptx_loss': batch.weights.sum()}

    def terms(self, batch: Batch, scored: Scored, estimates: Mapping[str, float]) -> dict[str, Tensor]:
        if not self.ptx_coeff:
            return self._sampled_terms(batch, scored)
        nothing = batch.weights.new_zeros(())
        if 'advantage' in batch.per_unit:
            return {**self._sampled_terms(batch, scored), 'ptx_loss': nothing}
        supervised = sft_loss(scored.values, batch.weights)
        return {**dict.fromkeys(self._sampled_counts(batch), nothing), 'ptx_loss': supervised}

    def _sampled_counts(self, batch: Batch) -> dict[str, Tensor]:
        _, count = self._aggregated(batch)
        metrics = ('ratio', 'approx_kl', 'clipped_low', 'clipped_high')
        dual = () if self.clip_range_dual is None else ('clipped_dual',)
        kl = ('kl',) if self.refers else ()
        return {
            **dict.fromkeys(('policy_loss', 'entropy', *kl), count),
            **dict.fromkeys((*metrics, *dual), batch.weights.sum()),
        }

    def _sampled_terms(self, batch: Batch, scored: Scored) -> dict[str, Tensor]:
        logprobs, responses = scored.values, (batch.segments, batch.num_responses)
        old = batch.values_of('old')
        advantages = weighed_by_kind(batch.values_of('advantage'), batch.kinds, self.emitted_advantage_weights)
        weights, _ = self._aggregated(batch)
        ratios = self.ratios(batch, scored)
        trusted = weights
        if self.corrects:
            level, cap = self.rollout_correction_level, self.rollout_correction_cap
            trusted = weights * rollout_weights(
                old, batch.values_of('rollout'), batch.weights, *responses, level=level, cap=cap
            )
        terms = {
            'policy_loss': self.policy_loss(batch, scored, ratios, advantages, trusted),
            'entropy': (weights * scored.entropy).sum(),
        }
        if self.refers:
            kl = scored.divergence
            if kl is None:
                kl = KL_ESTIMATORS[self.kl_in_loss[1]](logprobs, batch.values_of('reference'))
            terms['kl'] = (weights * (kl * ratios if self.corrects_kl else kl)).sum()
        metrics = policy_metrics(logprobs.detach(), old, ratios.detach(), advantages, batch.weights, self.clip)
        return {**terms, **metrics}

    def _aggregated(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return aggregation_weights(
            batch.weights, batch.segments, batch.num_responses, self.loss_aggregation, self.constant_length
        )
