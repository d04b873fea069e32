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

TIE = 0.5
"""The soft label of a pair of which neither response is better."""
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


def labels_of(batch: Batch) -> Tensor:
    """How likely the chosen response of each pair is the better one, `(pairs,)` float32: 1, or its `soft_label`."""
    labels = [1.0 if meta.get('soft_label') is None else float(meta['soft_label']) for meta in batch.metas]
    return torch.tensor(labels[: batch.num_responses // 2])


def pair_metrics(chosen: Tensor, rejected: Tensor) -> dict[str, Tensor]:
    """Sums over pairs of what `PAIR_METRICS` name, given the rewards `(pairs,)` of both responses."""
    chosen, rejected = chosen.detach(), rejected.detach()
    sums = ((chosen > rejected).to(chosen.dtype), chosen - rejected, chosen, rejected)
    return {name: value.sum() for name, value in zip(PAIR_METRICS, sums, strict=True)}


class PairAlgorithm(Algorithm):
    """Base of the algorithms that compare the log-probabilities of two responses.

    The preference loss is a mean over pairs; the likelihood of the chosen responses, a mean over their tokens, stands
    beside it with a coefficient of its own.

    A row whose meta holds a `soft_label` counts as a pair in either order, each with its probability. Ties, whose label
    is 0.5, count in the losses alone and not in the metrics of pairs.
    """

    soft_labels: ClassVar[bool] = True
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
        pairs, labels = number_of_pairs(batch), self._labels(batch)
        return {
            'preference_loss': pairs,
            'sft_loss': _chosen_weights(batch, labels).sum(),
            **dict.fromkeys(PAIR_METRICS, pairs - (labels == TIE).sum()),
        }

    def terms(self, batch: Batch, scored: Scored, estimates: Mapping[str, float]) -> dict[str, Tensor]:
        logprobs = scored.values
        ratios = logprobs - batch.values_of('reference') if self.refers else logprobs
        labels = self._labels(batch).to(logprobs.device)
        losses, chosen, rejected = self._expected_losses(_ratios(batch, ratios), labels)
        return {
            'preference_loss': losses.sum(),
            'sft_loss': sft_loss(logprobs, _chosen_weights(batch, labels)),
            **pair_metrics(chosen[labels != TIE], rejected[labels != TIE]),
        }

    def _labels(self, batch: Batch) -> Tensor:
        # Pairs that a policy has generated are those of its scores, whatever the row says.
        return labels_of(batch) if self.soft_labels else torch.ones(batch.num_responses // 2)

    def _expected_losses(self, ratios: Ratios, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `pair_losses`, the losses being `p L(chosen, rejected) + (1 - p) L(rejected, chosen)` for a label p.

        For DPO's own loss that is the one of conservative DPO, with a chance of each row's own.
        """
        losses, chosen, rejected = self.pair_losses(ratios)
        soft = labels < 1
        if soft.any():
            # Of soft pairs alone: of others this loss may overflow, and zero times it would be no number.
            reversed_losses, _, _ = self.pair_losses(ratios.reversed(soft))
            likely = labels[soft].to(losses)
            losses = losses.masked_scatter(soft, likely * losses[soft] + (1 - likely) * reversed_losses)
        return losses, chosen, rejected


def _ratios(batch: Batch, values: Tensor) -> Ratios:
    sums = response_sums(values * batch.weights, batch.segments, batch.num_responses)
    lengths = response_sums(batch.weights, batch.segments, batch.num_responses).clamp(min=1.0)
    return Ratios(*pairs_of(sums), *pairs_of(lengths))


def _chosen_weights(batch: Batch, labels: Tensor) -> Tensor:
    """The weight of each unit, times how likely its response is the better one of its pair, `(N,)`."""
    alone = labels.new_zeros(batch.num_responses % 2)
    likely = torch.cat([torch.stack([labels, 1 - labels], dim=1).flatten(), alone])
    return batch.weights * likely[batch.segments]
