"""A language model, with or without towers, as a function from Batches to flat log-probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from align_anything.core.errors import ModelError
from align_anything.core.flops import Flops
from align_anything.core.types import Batch, MediaKind, Scored
from align_anything.models.adapter import bare_model
from align_anything.models.checkpointing import share_recomputed
from align_anything.models.frames import FURTHER, WritesFrames
from align_anything.models.work import Work, work_of_model
from align_anything.policies.token.collator import TokenCollator
from align_anything.policies.token.flops import flops_of
from align_anything.policies.token.heads import Guidance, among, make_head
from align_anything.policies.token.hidden import HiddenStates
from align_anything.policies.token.selfcheck import check_head, choose_checked, probe_batch


class TokenPolicy(nn.Module):
    """Scores response tokens: `forward(batch) -> Scored` with log-probabilities `(N,)` in float32.

    Only positions that predict a scored unit reach the output embedding. Serves text, unified tokens and actions.
    """

    def __init__(self, model: nn.Module, collate: TokenCollator, *, dtype: torch.dtype) -> None:
        """Wraps `model` (a causal LM or image-text-to-text class, adapters applied); media are cast to `dtype`."""
        super().__init__()
        self.model = model
        self.collate = collate
        self.dtype = dtype
        self._hidden = HiddenStates(model, dtype, collate)
        self.head = make_head(collate.spec, bare_model(model))

    def forward(
        self,
        batch: Batch,
        *,
        entropy: bool = False,
        bootstrap: bool = False,
        routing: bool = False,
        further: bool = False,
        logits: bool = False,
    ) -> Any:
        """Returns the score of each unit `(N,)`; with `entropy` also the entropies, with `routing` where tokens went.

        With `further` it also returns the log-probability of the codes that ride beside each unit.

        With `logits` it returns those of the model itself instead, `(rows, length, vocabulary)`: for checks on small
        batches, through whatever wraps this module, because only in there does ZeRO-3 gather the weights.
        """
        if bootstrap:
            raise ModelError('a token policy expects no returns: only critics have bootstrap values.')
        if logits:
            return bare_model(self.model)(**self._hidden.arguments(batch)).logits
        hidden, routed = self._hidden.with_routing(batch, routing)
        share, inputs = self._hidden.share_of(batch), batch.inputs
        states, which = share.spread(inputs.score_index, hidden)
        more = {}
        if inputs.unconditional is not None:
            more['guidance'] = Guidance(share.spread(inputs.unconditional, hidden)[0], inputs.guidance)
        values, entropies = self.head(states, inputs.targets[which], entropy, **more)
        # An empty selection still has to lead every rank through the same backward pass.
        values = values + 0.0 * hidden.sum().float() if len(values) == 0 else values
        units = len(inputs.targets)
        values = share.whole(values, which, units)
        entropies = None if entropies is None else share.whole(entropies, which, units)
        beside = self._further(batch, hidden) if further else None
        return Scored(values, entropies, routing=routed, further=beside)

    def _further(self, batch: Batch, hidden: Tensor) -> Tensor:
        model, codes = bare_model(self.model), self.collate.spec.codes
        if not isinstance(model, WritesFrames):
            raise ModelError(f'{type(model).__name__} writes no codes beside its tokens.')
        inputs, (own,) = batch.inputs, codes.kinds.values()
        first = codes.rows_of(inputs.targets) - own.first[0]
        frames = torch.cat([first[:, None], inputs.arguments[FURTHER].flatten(0, 1)[inputs.target_index]], dim=1)
        share = self._hidden.share_of(batch)
        states, which = share.spread(inputs.score_index, hidden)
        if len(states):
            values = model.further_logprobs(states, frames[which])
        else:
            # Every rank runs the network: here on a frame that counts for nothing.
            blank = frames.new_zeros(1, 1 + codes.further)
            values = (0.0 * model.further_logprobs(hidden[:1], blank))[:0] + 0.0 * (hidden.sum() + states.sum())
        return share.whole(values, which, len(frames))

    def allowed(self, targets: Tensor, rows: int) -> Tensor | None:
        """Returns which of the ids below `rows` each target is scored among, `(N, rows)` bool; None for all of them."""
        codes = self.collate.spec.codes
        return None if codes is None or not codes.ranged else among(codes, targets, rows)

    def check(self, module: Any, device: torch.device) -> None:
        """Compares the head with the model's own logits, and its layout with one sequence at a time.

        A layout that is wrong on this model gives way to the padded one. Raises ModelError when that is wrong too.
        """

        def score(batch: Batch) -> Tensor:
            return module(batch.to(device)).values

        def logits(batch: Batch) -> Tensor:
            return module(batch, logits=True)

        module.eval()
        self.collate = choose_checked(
            score,
            self.collate,
            self.model,
            self.dtype,
            first=lambda padded: check_head(score, logits, probe_batch(padded).to(device), self.dtype, self.allowed),
        )

    def flops(self, batch: Batch) -> dict[str, Flops]:
        """Returns the operations of an update on the batch by component, see `models/work.py`."""
        return flops_of(batch, self.collate.spec, self._work)

    @cached_property
    def _work(self) -> Work:
        return work_of_model(self.model, self.collate.spec, share_recomputed(self.model))

    def set_temperature(self, temperature: float, of_media: Mapping[MediaKind, float] = MappingProxyType({})) -> None:
        """Divides what goes into the softmax by `temperature` from now on, behind the soft cap.

        Codes of a kind that `of_media` names have their own.
        """
        self.head.set_temperature(temperature, of_media)
