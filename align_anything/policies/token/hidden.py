"""From a Batch to hidden states, by the body of whatever class the model is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from align_anything.core.errors import ModelError
from align_anything.core.types import Batch
from align_anything.models.adapter import bare_model
from align_anything.models.body import BodyWithin
from align_anything.models.router import Routers
from align_anything.policies.token.attention import mask_with_blocks
from align_anything.policies.token.collator import TokenCollator
from align_anything.policies.token.layouts import BLOCKS
from align_anything.policies.token.sequence_parallel import SEGMENTS, Share, share_layers
from align_anything.policies.token.shared_towers import SharedTowers


class HiddenStates:
    """Calls the body of `model`, adapters applied; floating point inputs are cast to `dtype`.

    Where ranks share rows, there are hidden states of a rank's own tokens alone, see `share_of`. Raises ModelError for
    a class that computes hidden states and logits in one piece.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, collate: TokenCollator) -> None:
        self.model, self.dtype, self.share = model, dtype, Share.of(collate.ranks_per_row)
        plain = bare_model(model)
        body = plain.base_model
        if body is plain and not isinstance(plain, BodyWithin):
            raise ModelError(
                f'{type(plain).__name__} does not separate its body from its output embedding; '
                'load it through a class with a language-model head.'
            )
        names = (name for name, module in plain.named_modules() if module is body)
        self._body_name = None if body is plain else next(names)
        self._routers = Routers(plain)
        self._towers = SharedTowers(plain, collate.spec, self.share)
        if self.share.size > 1:
            share_layers(plain, collate.spec.component_of, self.share)

    def share_of(self, batch: Batch) -> Share:
        """Returns which share of the rows of a batch this rank has the states of."""
        return self.share if SEGMENTS in batch.inputs.arguments else Share()

    def __call__(self, batch: Batch) -> Tensor:
        """Returns the last hidden states, rows and columns in one, `(rows * length, size)`."""
        plain = bare_model(self.model)
        body = plain.body if self._body_name is None else plain.get_submodule(self._body_name)
        with self._towers.while_sharing(self.share_of(batch)):
            return body(**self.arguments(batch)).last_hidden_state.flatten(0, 1)

    def with_routing(self, batch: Batch, routing: bool) -> tuple[Tensor, Tensor | None]:
        """Returns the hidden states and, when asked for, where the tokens went, see `Scored.routing`."""
        if not routing:
            return self(batch), None
        with self._routers.recorded() as logits:
            hidden = self(batch)
        share, counted = self.share_of(batch), batch.inputs.distinct
        return hidden, share.summed(self._routers.sums(logits, counted[share.slice(len(counted))]))

    def arguments(self, batch: Batch) -> dict[str, Any]:
        """The keyword arguments of the model for a batch."""
        given = cast_floats(batch.inputs.arguments, self.dtype)
        share = self.share_of(batch)
        if share.group is not None:
            given[SEGMENTS] = replace(given[SEGMENTS], share=share)
        blocks = given.pop(BLOCKS, None)
        if blocks is not None:
            given['attention_mask'] = mask_with_blocks(given['attention_mask'], blocks, self.dtype)
        # A cache would switch transformers' own handling of restarting positions off.
        return {**given, 'use_cache': False}


def cast_floats(inputs: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Keyword arguments of a model with media in `dtype`; fractional positions would lose precision in it."""
    return {
        name: value.to(dtype)
        if isinstance(value, Tensor) and value.is_floating_point() and name != 'position_ids'
        else value
        for name, value in inputs.items()
    }
