"""An update that is the only one on its rollout: the policy in it is the one that sampled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from align_anything.core.types import Batch, Scored
from align_anything.engines.around import ObjectiveAround
from align_anything.engines.by_kind import ToldByKind

DRIFT = 'rollout_drift'


@dataclass(frozen=True)
class OnPolicy(ObjectiveAround):
    """An objective that reads the scores `old` of the policy that sampled, which are those of the update itself.

    No pass over the rollout before the update has to make them. It tells what these passes are compared for as a
    metric: how far the scores are from those of the rollout engine, in the mean.

    Attributes:
        objective: what is trained.
    """

    objective: ToldByKind

    @property
    def told_by_kind(self) -> tuple[str, ...]:
        """Those of the objective."""
        return self.objective.told_by_kind

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Those of the objective, and the units that the rollout engine scored."""
        scored_before = float(len(batch.segments)) if 'rollout' in batch.per_unit else 0.0
        return {**self.objective.counts(batch), DRIFT: batch.weights.new_tensor(scored_before)}

    def terms(self, batch: Batch, scored: Scored, estimates: Mapping[str, float]) -> dict[str, Tensor]:
        """Those of the objective, and the drift."""
        old = scored.values.detach()
        drift = (old - batch.per_unit['rollout']).abs().sum() if 'rollout' in batch.per_unit else old.new_zeros(())
        completed = replace(batch, per_unit={**batch.per_unit, 'old': old})
        return {**self.objective.terms(completed, scored, estimates), DRIFT: drift}
