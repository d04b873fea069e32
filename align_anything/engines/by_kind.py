"""What an objective tells of a step, by kind of unit: how text goes, and how the codes of pictures and sounds do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from align_anything.core.types import Batch, Scored
from align_anything.engines.around import ObjectiveAround
from align_anything.engines.step import Objective


class ToldByKind(Objective, Protocol):
    """An objective that names those of its numbers which are told by kind too."""

    told_by_kind: tuple[str, ...]


@dataclass(frozen=True)
class ByKind(ObjectiveAround):
    """An objective that tells `loss/image` and `loss/text` beside `loss`: what it is of units of one kind alone.

    These are metrics, with no part in the gradient. Batches that hold no codes have none of them.

    Attributes:
        objective: what is trained.
    """

    objective: ToldByKind

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Those of the objective, and those of each kind."""
        own = self.objective.counts(batch)
        for kind, alone in _by_kind(batch):
            own |= self._named(kind, self.objective.counts(alone))
        return own

    def terms(self, batch: Batch, scored: Scored, estimates: Mapping[str, float]) -> dict[str, Tensor]:
        """Those of the objective, and those of each kind, without a gradient."""
        own = self.objective.terms(batch, scored, estimates)
        with torch.no_grad():
            for kind, alone in _by_kind(batch):
                own |= self._named(kind, self.objective.terms(alone, scored, estimates))
        return own

    def _named(self, kind: str, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {f'{name}/{kind}': found[name] for name in self.objective.told_by_kind if name in found}


def _by_kind(batch: Batch) -> Iterator[tuple[str, Batch]]:
    """Each kind, with the batch as it were if nothing else weighed anything."""
    for kind, units in batch.kinds.items():
        yield kind, replace(batch, weights=batch.weights * units)
