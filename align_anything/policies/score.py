"""A model with a score head as a function from Batches to one number for each response, or for each unit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from align_anything.core.errors import ModelError
from align_anything.core.flops import Flops
from align_anything.core.types import Batch, MediaKind, Scored
from align_anything.models.adapter import bare_model
from align_anything.models.checkpointing import share_recomputed
from align_anything.models.score import SCORE_HEAD
from align_anything.models.work import Stack, Work, work_of_model
from align_anything.policies.token.collator import TokenCollator
from align_anything.policies.token.flops import flops_of
from align_anything.policies.token.hidden import HiddenStates
from align_anything.policies.token.selfcheck import choose_checked, random_reading
from align_anything.policies.token.sequence_parallel import Share


class ScorePolicy(nn.Module):
    """Scores whole responses: `forward(batch) -> Scored` with `(R,)` float32, read at the last token of each response.

    That token is the end-of-turn token, or where a response was clipped, the last one of it. With `units` it
    scores each unit instead, `(N,)`, by what stands before it: a critic.
    """

    def __init__(self, model: nn.Module, collate: TokenCollator, *, dtype: torch.dtype, units: bool = False) -> None:
        """Wraps `model`, made by `AnyModelForScore`, adapters applied; media are cast to `dtype`."""
        super().__init__()
        self.model = model
        self.collate = collate
        self.dtype = dtype
        self.units = units
        self._hidden = HiddenStates(model, dtype, collate)

    def forward(
        self,
        batch: Batch,
        *,
        entropy: bool = False,
        bootstrap: bool = False,
        routing: bool = False,
        states: bool = False,
    ) -> Any:
        """Returns the score of each response `(R,)`, or of each unit `(N,)`.

        With `bootstrap` it also returns what a critic expects behind the last token of each response, `(R,)`. With
        `states` it returns a projection of the hidden states before each unit instead, `(N,)`: new heads score
        everything nearly alike, which would hide from the check what a layout does to the states.
        """
        if entropy:
            raise ModelError('a score has no entropy: ask the policy that samples for it.')
        hidden, routed = self._hidden.with_routing(batch, routing)
        share = self._hidden.share_of(batch)
        if states:
            return _read(random_reading, hidden, share, batch.inputs.score_index)
        head = partial(_read, bare_model(self.model).get_submodule(SCORE_HEAD), hidden, share)
        return Scored(
            head(batch.inputs.score_index if self.units else batch.inputs.ends),
            bootstrap=head(batch.inputs.ends) if bootstrap else None,
            routing=routed,
        )

    def check(self, module: Any, device: torch.device) -> None:
        """Compares the states that its layout gives with those of one sequence at a time; see `TokenPolicy.check`."""

        def read(batch: Batch) -> Tensor:
            return module(batch.to(device), states=True)

        module.eval()
        self.collate = choose_checked(read, self.collate, self.model, self.dtype)

    def flops(self, batch: Batch) -> dict[str, Flops]:
        """Returns the operations of an update on the batch by component; those of the head are too few to count."""
        return flops_of(batch, self.collate.spec, self._work)

    @cached_property
    def _work(self) -> Work:
        work = work_of_model(self.model, self.collate.spec, share_recomputed(self.model))
        return replace(work, head=Stack())

    def set_temperature(self, temperature: float, of_media: Mapping[MediaKind, float] = MappingProxyType({})) -> None:
        """Raises ModelError: what is not sampled from has no temperature."""
        raise ModelError('a score head has no temperature.')


def _read(head: Callable[[Tensor], Tensor], hidden: Tensor, share: Share, index: Tensor) -> Tensor:
    states, which = share.spread(index, hidden)
    scores = head(states)
    # An empty selection still has to lead every rank through the same backward pass.
    scores = scores if len(scores) else scores + 0.0 * hidden.sum()
    return share.whole(scores, which, len(index))
