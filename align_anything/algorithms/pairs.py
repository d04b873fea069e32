"""What the algorithms share that learn from pairs: a chosen and a rejected response to each prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor

from align_anything.algorithms.base import Algorithm
from align_anything.core.types import Batch, Scored
from align_anything.losses.dpo import Ratios
from align_anything.losses.responses import response_sums
from align_anything.losses.sft import sft_loss

SFTCoeff = Annotated[
    NonNegativeFloat,
    Field(description='Weight of the negative log-likelihood of the chosen responses, a token mean, in the loss.'),
]
LabelSmoothing = Annotated[float, Field(ge=0, lt=0.5, description='Assumed chance that a label is flipped.')]

PAIR_METRICS = ('reward_accuracy', 'reward_margin', 'chosen_reward', 'rejected_reward')


def pairs_of(values: Tensor) -> tuple[Tensor, Tensor]:
    """Splits numbers of responses `(R,)` into those of the chosen and the rejected ones, `(pairs,)` each.

    Responses come as chosen, rejected, chosen, rejected …; an empty micro-batch has one response and no pair.
    """
    chosen, rejected = values[: len(values) // 2 * 2].view(-1, 2).unbind(1)
    return chosen, rejected


def number_of_pairs(batch: Batch) -> Tensor:
    """Pairs in a batch, `()`."""
    return torch.tensor(float(batch.num_responses // 2))


def pair_metrics(chosen: Tensor, rejected: Tensor) -> dict[str, Tensor]:
    """Sums over pairs of what `PAIR_METRICS` name, given the rewards `(pairs,)` of both responses."""
    chosen, rejected = chosen.detach(), rejected.detach()
    sums = ((chosen > rejected).to(chosen.dtype), chosen - rejected, chosen, rejected)
    return {name: value.sum() for name, value in zip(PAIR_METRICS, sums, strict=True)}


class PairAlgorithm(Algorithm):
    """Base of the algorithms that compare the log-probabilities of two responses.

    The preference loss is a mean over pairs; the likelihood of the chosen responses, a mean over their tokens, stands
    beside it with a coefficient of its own.
    """

    task: ClassVar[str] = 'preference'
    # Rewards are sums over units, so that those of all kinds add up to them.
    told_by_kind: ClassVar[tuple[str, ...]] = ('sft_loss', 'reward_margin', 'chosen_reward', 'rejected_reward')

    sft_coeff: SFTCoeff = 0.0

    def pair_losses(self, ratios: Ratios) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of each pair and the rewards of its chosen and rejected response, `(pairs,)` each.

        `ratios` holds log-probabilities less those of the reference, or without a reference as they are.
        """
        raise NotImplementedError

    def coefficients(self) -> dict[str, float]:
        return {'preference_loss': 1.0, **({'sft_loss': self.sft_coeff} if self.sft_coeff else {})}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        pairs = number_of_pairs(batch)
        return {
            'preference_loss': pairs,
            'sft_loss': _chosen_weights(batch).sum(),
            **dict.fromkeys(PAIR_METRICS, pairs),
        }

    def terms(self, batch: Batch, scored: Scored, estimates: Mapping[str, float]) -> dict[str, Tensor]:
        logprobs = scored.values
        ratios = logprobs - batch.values_of('reference') if self.refers else logprobs
        losses, chosen, rejected = self.pair_losses(_ratios(batch, ratios))
        return {
            'preference_loss': losses.sum(),
            'sft_loss': sft_loss(logprobs, _chosen_weights(batch)),
            **pair_metrics(chosen, rejected),
        }


def _ratios(batch: Batch, values: Tensor) -> Ratios:
    sums = response_sums(values * batch.weights, batch.segments, batch.num_responses)
    lengths = response_sums(batch.weights, batch.segments, batch.num_responses).clamp(min=1.0)
    return Ratios(*pairs_of(sums), *pairs_of(lengths))


def _chosen_weights(batch: Batch) -> Tensor:
    paired = batch.segments < batch.num_responses // 2 * 2
    return batch.weights * (paired & (batch.segments % 2 == 0))
