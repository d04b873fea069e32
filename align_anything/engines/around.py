"""An objective around another one, which it passes on but for what it adds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from align_anything.core.types import Batch, Scored
from align_anything.engines.step import Objective


@dataclass(frozen=True)
class ObjectiveAround:
    """What `objective` says. A class derived from it says more."""

    objective: Objective

    @property
    def estimates_first(self) -> bool:
        """That of the objective."""
        return self.objective.estimates_first

    @property
    def with_entropy(self) -> bool:
        """That of the objective."""
        return self.objective.with_entropy

    @property
    def with_routing(self) -> bool:
        """That of the objective."""
        return self.objective.with_routing

    @property
    def with_further(self) -> bool:
        """That of the objective."""
        return self.objective.with_further

    def coefficients(self) -> dict[str, float]:
        """Those of the objective."""
        return self.objective.coefficients()

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Those of the objective."""
        return self.objective.counts(batch)

    def terms(self, batch: Batch, scored: Scored, estimates: Mapping[str, float]) -> dict[str, Tensor]:
        """Those of the objective."""
        return self.objective.terms(batch, scored, estimates)

    def estimates(self, batch: Batch, scored: Scored) -> dict[str, tuple[Tensor, Tensor]]:
        """Those of the objective."""
        return self.objective.estimates(batch, scored)
