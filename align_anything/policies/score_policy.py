"""A model with a score head as a function from Batches to one number for each response."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from align_anything.core.types import Batch
from align_anything.models.score import SCORE_HEAD
from align_anything.policies.hidden import HiddenStates, bare_model


class ScorePolicy(nn.Module):
    """Scores whole responses: `forward(batch) -> (R,)` float32, read at the last token of each response.

    That token is the end-of-turn token, or where a response was cut, the last one that is left of it.
    """

    def __init__(self, model: nn.Module, *, dtype: torch.dtype) -> None:
        """Wraps `model`, made by `AnyModelForScore`, adapters applied; media are cast to `dtype`."""
        super().__init__()
        self.model = model
        self._hidden = HiddenStates(model, dtype)

    def forward(self, batch: Batch) -> Tensor:
        """Returns the score of each response `(R,)`."""
        ends = self._hidden(batch).index_select(0, batch.ends)
        return bare_model(self.model).get_submodule(SCORE_HEAD)(ends)
