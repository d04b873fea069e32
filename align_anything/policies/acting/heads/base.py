"""What every head can do with what a model says of steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from align_anything.core.types import Scored


@dataclass
class Targets:
    """Actions to score.

    Attributes:
        ids: the number of each, `(N,)`; of no meaning where they are numbers.
        values: those numbers, `(N, chunk, dimensions)`, normalised; None of named actions.
        said: which steps of a chunk there are, `(N, chunk)` bool.
    """

    ids: Tensor
    values: Tensor | None = None
    said: Tensor | None = None


@dataclass
class Sampled:
    """Actions that were sampled: their numbers `(rows,)`, or values, and the log-probability of each, `(rows,)`."""

    logprobs: Tensor
    ids: Tensor | None = None
    values: Tensor | None = None


class Head(Protocol):
    """Scores and samples actions, given what the model's `actor` says of the steps in which they are done."""

    def score(self, said: Tensor, targets: Targets, temperature: float, entropy: bool = False) -> Scored:
        """Returns the score of each action, `(N,)` float32, with its `entropy` on request."""
        ...

    def sample(self, said: Tensor, temperature: float, generators: Sequence[torch.Generator]) -> Sampled:
        """Returns an action for each row, sampled by its generator; at temperature 0 the most likely one."""
        ...

    def prediction(self, said: Tensor) -> Tensor | None:
        """Returns what of it is kept to compare policies by exactly, `(N, …)`; None of heads that have no such."""
        ...

    def divergence(self, said: Tensor, other: Tensor) -> Tensor:
        """Returns the KL divergence of each distribution from another one, given its prediction, `(N,)`."""
        ...
