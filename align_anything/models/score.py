"""One head that serves every backbone as reward, cost or value head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SCORE_HEAD = 'score'
"""Name of the head inside a model and of its weight (`score.weight`), as in transformers' sequence classifiers."""
INITIALISATION_SEED = 0


class ScoreHead(nn.Module):
    """Maps hidden states to one score each: `scores(hidden (..., size)) -> (...)` in float32."""

    def __init__(self, hidden_size: int) -> None:
        """Makes a head for hidden states of `hidden_size`, its first weights the same in every process."""
        super().__init__()
        generator = torch.Generator().manual_seed(INITIALISATION_SEED)
        # Small enough that the first scores are near zero whatever the scale of the hidden states.
        weight = torch.randn(1, hidden_size, generator=generator) / (hidden_size + 1)
        self.weight = nn.Parameter(weight)

    def forward(self, hidden: Tensor) -> Tensor:
        """Returns the scores of `hidden` `(..., size)` as `(...)` float32."""
        return self.scores(hidden)

    def scores(self, hidden: Tensor) -> Tensor:
        """Returns the scores of `hidden` `(..., size)` as `(...)` float32."""
        wide = torch.promote_types(hidden.dtype, torch.float32)
        return (hidden.to(wide) @ self.weight.to(wide).t()).squeeze(-1)
