"""A chunk of numbers around a mean that the model says, with a scatter that no state decides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from align_anything.core.types import Scored
from align_anything.policies.acting.heads.base import Sampled, Targets

LOG_SQRT_TAU = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class Gaussian:
    """Says means and logarithms of standard deviations, `(N, 2, chunk, dimensions)`; a temperature scales the latter.

    Attributes:
        mean: whether the log-density of a chunk is the mean over its numbers, where policies are compared by ratios. As
            their sum, which is the true one, ratios over hundreds of numbers leave every clip range at once; as a mean
            they are the geometric mean of those of single numbers, as they are of denoising steps.
    """

    mean: bool = False

    def score(self, said: Tensor, targets: Targets, temperature: float, entropy: bool = False) -> Scored:
        """Returns the log-density of each chunk, `(N,)`, over the steps of it that there are."""
        mean, log_std = self._parts(said, temperature)
        deviations = (targets.values.float() - mean) / log_std.exp()
        densities = -0.5 * deviations.square() - log_std - LOG_SQRT_TAU
        entropies = self._over(log_std + LOG_SQRT_TAU + 0.5, targets.said) if entropy else None
        return Scored(self._over(densities, targets.said), entropies)

    def sample(self, said: Tensor, temperature: float, generators: Sequence[torch.Generator]) -> Sampled:
        """Returns a chunk for each row; at temperature 0 the mean, with its density at 1."""
        mean, log_std = (part.cpu() for part in self._parts(said, temperature or 1.0))
        values = mean
        if temperature:
            noise = torch.stack([torch.randn(mean.shape[1:], generator=own) for own in generators])
            values = mean + log_std.exp() * noise
        targets = Targets(torch.zeros(len(values)), values, torch.ones(values.shape[:2], dtype=torch.bool))
        return Sampled(self.score(said.cpu(), targets, temperature or 1.0).values, values=values)

    def prediction(self, said: Tensor) -> Tensor:
        """Returns means and logarithms of standard deviations."""
        return said

    def divergence(self, said: Tensor, other: Tensor) -> Tensor:
        """Returns the exact KL divergence of each chunk, `(N,)`, whatever the temperature."""
        mean, log_std = said.float().unbind(1)
        other_mean, other_log_std = other.float().unbind(1)
        spread = (log_std.exp().square() + (mean - other_mean).square()) / (2 * other_log_std.exp().square())
        return self._over(other_log_std - log_std + spread - 0.5, None)

    def _parts(self, said: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        mean, log_std = said.float().unbind(1)
        return mean, log_std + math.log(temperature)

    def _over(self, numbers: Tensor, said: Tensor | None) -> Tensor:
        """The sum, or the mean, over the numbers of a chunk that there are."""
        if said is None:
            said = torch.ones(numbers.shape[:2], dtype=torch.bool, device=numbers.device)
        mask = said[..., None].to(numbers)
        total = (numbers * mask).flatten(1).sum(1)
        return total / (mask.flatten(1).sum(1) * numbers.shape[2]).clamp(min=1.0) if self.mean else total
