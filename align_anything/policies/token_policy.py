"""A language model, with or without towers, as a function from Batches to flat log-probabilities."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from align_anything.core.errors import ModelError
from align_anything.core.types import Batch, Scored
from align_anything.models.body import BodyWithin
from align_anything.policies.logprob import LogProbHead


class TokenPolicy(nn.Module):
    """Scores response tokens: `forward(batch) -> (N,)` log-probabilities in float32.

    Only positions that predict a scored unit reach the output embedding. Serves text, unified tokens and actions.
    """

    def __init__(self, model: nn.Module, *, softcap: float | None, logit_scale: float, dtype: torch.dtype) -> None:
        """Wraps `model` (a causal LM or image-text-to-text class, adapters applied); media are cast to `dtype`."""
        super().__init__()
        self.model = model
        plain = bare_model(model)
        body, head = plain.base_model, plain.get_output_embeddings()
        if head is None or (body is plain and not isinstance(plain, BodyWithin)):
            raise ModelError(
                f'{type(plain).__name__} does not separate its body from its output embedding; '
                'load it through a class with a language-model head.'
            )
        self._body_name = None if body is plain else _name_of(plain, body)
        self.head = LogProbHead(head, logit_scale, softcap)
        self.dtype = dtype

    def forward(self, batch: Batch, with_entropy: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Returns the score of each unit `(N,)`, and with `with_entropy` also the entropies `(N,)`."""
        plain = bare_model(self.model)
        body = plain.body if self._body_name is None else plain.get_submodule(self._body_name)
        hidden = body(**self._inputs(batch)).last_hidden_state
        selected = hidden.flatten(0, 1).index_select(0, batch.score_index)
        values, entropies = self.head(selected, batch.targets, with_entropy)
        # An empty selection still has to lead every rank through the same backward pass.
        values = values + 0.0 * selected.sum().float() if len(values) == 0 else values
        return (values, entropies) if with_entropy else values

    def logits(self, batch: Batch) -> Tensor:
        """The model's own logits `(rows, length, vocabulary)`: for checks on small batches only."""
        return bare_model(self.model)(**self._inputs(batch)).logits

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        cast = {
            # Fractional positions would lose their place in half precision.
            name: value.to(self.dtype)
            if isinstance(value, Tensor) and value.is_floating_point() and name != 'position_ids'
            else value
            for name, value in batch.inputs.items()
        }
        # A cache would switch transformers' own handling of restarting positions off.
        return {**cast, 'use_cache': False}

    def score(self, batch: Batch, with_entropy: bool = False) -> Scored:
        """The forward pass with its result as a `Scored`, for use outside an engine."""
        result = self(batch, with_entropy)
        return Scored(*result) if with_entropy else Scored(result)


def bare_model(model: nn.Module) -> nn.Module:
    """The transformers model inside an adapter wrapper, or the model itself."""
    from peft import PeftModel

    return model.get_base_model() if isinstance(model, PeftModel) else model


def _name_of(parent: nn.Module, child: nn.Module) -> str:
    return next(name for name, module in parent.named_modules() if module is child)
