"""A language model, with or without towers, as a function from Batches to flat log-probabilities."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from align_anything.core.errors import ModelError
from align_anything.core.types import Batch, Scored
from align_anything.models.adapter import bare_model
from align_anything.policies.token.hidden import HiddenStates
from align_anything.policies.token.logprob import LogProbHead


class TokenPolicy(nn.Module):
    """Scores response tokens: `forward(batch) -> (N,)` log-probabilities in float32.

    Only positions that predict a scored unit reach the output embedding. Serves text, unified tokens and actions.
    """

    def __init__(self, model: nn.Module, *, softcap: float | None, logit_scale: float, dtype: torch.dtype) -> None:
        """Wraps `model` (a causal LM or image-text-to-text class, adapters applied); media are cast to `dtype`."""
        super().__init__()
        self.model = model
        self.dtype = dtype
        self._hidden = HiddenStates(model, dtype)
        head = bare_model(model).get_output_embeddings()
        if head is None:
            raise ModelError(
                f'{type(bare_model(model)).__name__} has no output embedding; '
                'load it through a class with a language-model head.'
            )
        self.head = LogProbHead(head, logit_scale, softcap)

    def forward(self, batch: Batch, with_entropy: bool = False, whole: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Returns the score of each unit `(N,)`, and with `with_entropy` also the entropies `(N,)`.

        With `whole` it returns the `logits` instead.
        """
        if whole:
            return self.logits(batch)
        selected = self._hidden(batch).index_select(0, batch.score_index)
        values, entropies = self.head(selected, batch.targets, with_entropy)
        # An empty selection still has to lead every rank through the same backward pass.
        values = values + 0.0 * selected.sum().float() if len(values) == 0 else values
        return (values, entropies) if with_entropy else values

    def logits(self, batch: Batch) -> Tensor:
        """The model's own logits `(rows, length, vocabulary)`: for checks on small batches only."""
        return bare_model(self.model)(**self._hidden.arguments(batch)).logits

    def score(self, batch: Batch, with_entropy: bool = False) -> Scored:
        """The forward pass with its result as a `Scored`, for use outside an engine."""
        result = self(batch, with_entropy)
        return Scored(*result) if with_entropy else Scored(result)
