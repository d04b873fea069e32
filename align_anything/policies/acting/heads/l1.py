"""A chunk of numbers without a likelihood: it is only ever compared with what was demonstrated."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from align_anything.core.errors import ModelError
from align_anything.core.types import Scored
from align_anything.policies.acting.heads.base import Sampled, Targets


class L1:
    """Says numbers `(N, chunk, dimensions)`; the score is how small the mean absolute error is."""

    def score(self, said: Tensor, targets: Targets, temperature: float, entropy: bool = False) -> Scored:
        """Returns minus the mean absolute error of each chunk, `(N,)`. Raises ModelError where its entropy is asked."""
        if entropy:
            raise ModelError('an L1 head has no entropy: it says one action and no distribution.')
        mask = targets.said[..., None].float()
        errors = ((said.float() - targets.values.float()).abs() * mask).flatten(1).sum(1)
        return Scored(-errors / (mask.flatten(1).sum(1) * said.shape[2]).clamp(min=1.0))

    def sample(self, said: Tensor, temperature: float, generators: Sequence[torch.Generator]) -> Sampled:
        """Returns what the model says, whatever the temperature, with a log-probability of 0."""
        values = said.float().cpu()
        return Sampled(torch.zeros(len(values)), values=values)

    def prediction(self, said: Tensor) -> None:
        """None: it says no distribution."""
        return

    def divergence(self, said: Tensor, other: Tensor) -> Tensor:
        """Raises ModelError: it says no distribution."""
        raise ModelError('an L1 head has no divergence: it says one action and no distribution.')
