"""A model with a score head as a function from Batches to one number for each response, or for each unit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from align_anything.core.types import Batch
from align_anything.models.adapter import bare_model
from align_anything.models.score import SCORE_HEAD
from align_anything.policies.token.hidden import HiddenStates


class ScorePolicy(nn.Module):
    """Scores whole responses: `forward(batch) -> (R,)` float32, read at the last token of each response.

    That token is the end-of-turn token, or where a response was cut, the last one that is left of it. With `units` it
    scores each unit instead, `(N,)`, by what stands before it: a critic.
    """

    def __init__(self, model: nn.Module, *, dtype: torch.dtype, units: bool = False) -> None:
        """Wraps `model`, made by `AnyModelForScore`, adapters applied; media are cast to `dtype`."""
        super().__init__()
        self.model = model
        self.dtype = dtype
        self.units = units
        self._hidden = HiddenStates(model, dtype)

    def forward(self, batch: Batch, read: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Returns the score of each response `(R,)`, or of each unit `(N,)`.

        With `read` it returns what that makes of the hidden states `(N, size)` before each unit instead: new heads
        score everything nearly alike, which would hide what a layout does to the states.
        """
        hidden = self._hidden(batch)
        if read is not None:
            return read(hidden.index_select(0, batch.score_index))
        places = batch.score_index if self.units else batch.ends
        scores = bare_model(self.model).get_submodule(SCORE_HEAD)(hidden.index_select(0, places))
        # An empty selection still has to lead every rank through the same backward pass.
        return scores if len(scores) else scores + 0.0 * hidden.sum()


@contextmanager
def reading_ends(policy: ScorePolicy) -> Iterator[None]:
    """While the context lasts, a critic scores responses, `(R,)`: by what it expects behind the last token of each."""
    units, policy.units = policy.units, False
    try:
        yield
    finally:
        policy.units = units
