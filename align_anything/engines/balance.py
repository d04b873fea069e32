"""The router loss as a term of its own in the objective of an optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from align_anything.core.types import Batch, Scored
from align_anything.engines.around import ObjectiveAround
from align_anything.losses.router import router_loss

TERM = 'router_loss'
LOAD = 'expert_load/'
"""Before the number of an expert, of which there may be hundreds."""


@dataclass(frozen=True)
class Balanced(ObjectiveAround):
    """An objective with the router loss beside it, both over the whole step.

    Its count are the tokens that the step computes, each once: no padding, no dummies, and of a prompt that a layout
    repeats only the first copy.

    Attributes:
        objective: what else is trained.
        coefficient: weight of the router loss.
        shares: tokens of the step that went to each expert, by the number of tokens, `(experts,)`.
    """

    with_routing: ClassVar[bool] = True

    coefficient: float
    shares: Tensor

    def coefficients(self) -> dict[str, float]:
        """Those of the objective, and its own."""
        return {**self.objective.coefficients(), TERM: self.coefficient}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Those of the objective, and the tokens that are computed, for the loss and for the load of each expert."""
        tokens = torch.tensor(float(batch.stats['distinct_tokens']))
        loads = {f'{LOAD}{number}': tokens for number in range(len(self.shares))}
        return {**self.objective.counts(batch), TERM: tokens, **loads}

    def terms(self, batch: Batch, scored: Scored, estimates: Mapping[str, float]) -> dict[str, Tensor]:
        """Those of the objective, the loss, and the share of its tokens' assignments that went to each expert."""
        probabilities, tokens = scored.routing
        loads = (tokens / self.shares.sum()).unbind()
        return {
            **self.objective.terms(batch, scored, estimates),
            TERM: router_loss(probabilities, self.shares),
            **{f'{LOAD}{number}': load for number, load in enumerate(loads)},
        }


def global_shares(
    micro_batches: Sequence[Batch], score: Callable[[Batch], Scored], reduce_sum: Callable[[Tensor], Tensor]
) -> Tensor:
    """Tokens of the step that go to each expert, by the number of tokens, over all ranks, `(experts,)`.

    A forward pass without a graph over each micro-batch: the loss multiplies these shares by probabilities, both of the
    whole step, so no part of it has a gradient before they are known.
    """
    totals = []
    with torch.no_grad():
        for batch in micro_batches:
            tokens = score(batch).routing[1].double()
            totals.append(torch.cat([tokens, tokens.new_tensor([batch.stats['distinct_tokens']])]))
    *tokens, count = reduce_sum(torch.stack(totals).sum(0)).unbind()
    return torch.stack(tokens) / count.clamp(min=1.0)
