"""What says the next action, given the vector of a step: one module for each kind of head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from align_anything.models.acting.configuration import SpocConfig


class Numbers(nn.Module):
    """Says the numbers of a chunk, `(units, size) -> (units, chunk, dimensions)`."""

    def __init__(self, config: SpocConfig) -> None:
        super().__init__()
        self.shape = (config.chunk, config.dimensions)
        self.mean = nn.Linear(config.hidden_size, config.chunk * config.dimensions)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.mean(hidden).unflatten(-1, self.shape)


class Gaussian(Numbers):
    """Says the mean of each number, and how far it scatters, which no state decides.

    Its two answers are stacked: `(units, 2, chunk, dimensions)`, the second the logarithm of the standard deviation.
    """

    def __init__(self, config: SpocConfig) -> None:
        super().__init__(config)
        self.log_std = nn.Parameter(torch.full(self.shape, config.log_std))

    def forward(self, hidden: Tensor) -> Tensor:
        mean = super().forward(hidden)
        return torch.stack([mean, self.log_std.expand_as(mean)], 1)


def make_actor(config: SpocConfig) -> nn.Module:
    """Returns the module of the head that the configuration names."""
    if config.head == 'categorical':
        return nn.Linear(config.hidden_size, config.actions)
    return Gaussian(config) if config.head == 'gaussian' else Numbers(config)
