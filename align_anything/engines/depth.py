"""The loss of the codes that ride beside the tokens of frames, as a term of its own in the objective of a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from align_anything.core.types import Batch, Scored
from align_anything.engines.around import ObjectiveAround
from align_anything.engines.step import Objective
from align_anything.losses.sft import sft_loss

TERM = 'depth_loss'


@dataclass(frozen=True)
class WithDepth(ObjectiveAround):
    """An objective with the loss of the further codes of frames beside it, which a depth decoder writes.

    Its count are these codes, each with the weight of its frame.

    Attributes:
        objective: what else is trained.
        coefficient: weight of the loss.
        codes: how many further codes a frame has.
    """

    with_further: ClassVar[bool] = True

    coefficient: float
    codes: int

    def coefficients(self) -> dict[str, float]:
        """Those of the objective, and its own."""
        return {**self.objective.coefficients(), TERM: self.coefficient}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Those of the objective, and the further codes."""
        return {**self.objective.counts(batch), TERM: batch.weights.sum() * self.codes}

    def terms(self, batch: Batch, scored: Scored, estimates: Mapping[str, float]) -> dict[str, Tensor]:
        """Those of the objective, and the negative log-likelihood of the further codes."""
        own = self.objective.terms(batch, scored, estimates)
        return {**own, TERM: sft_loss(scored.further, batch.weights)}


def with_depth(objective: Objective, coefficient: float | None, codes: int) -> Objective:
    """Returns `objective`, with the loss of further codes where frames have some, and a coefficient weighs it."""
    return WithDepth(objective, coefficient, codes) if codes and coefficient is not None else objective
