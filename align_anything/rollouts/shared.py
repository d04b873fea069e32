"""Rollouts of ranks that have the same prompts: each generates for some of them, and all get the responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch.distributed import ProcessGroup

from align_anything.core.distributed import all_gather_object, rank, subgroup
from align_anything.core.types import Example, Response
from align_anything.rollouts.base import Around, Sampling, Tell, tell_whole
from align_anything.rollouts.restricted import seed_of


@dataclass
class SharedRollouts(Around):
    """Generates with `engine` where each `ranks` ranks in a row have the same prompts. Every rank makes it.

    Attributes:
        engine: what samples.
        ranks: how many have the same prompts.
    """

    ranks: int
    _group: ProcessGroup | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._group = subgroup(self.ranks)

    def generate(
        self, examples: Sequence[Example], sampling: Sampling, tell: Tell | None = None
    ) -> list[list[Response]]:
        """Returns the responses of all Examples, on each rank the same. Every rank calls it."""
        number = rank() % self.ranks
        own = slice(number, None, self.ranks)
        seeds = None if sampling.seeds is None else sampling.seeds[own]
        mine = replace(sampling, seed=seed_of(sampling.seed, number), seeds=seeds)
        found = all_gather_object(self.engine.generate(examples[own], mine), self._group)
        made = [found[index % self.ranks][index // self.ranks] for index in range(len(examples))]
        tell_whole(made, tell)
        return made
