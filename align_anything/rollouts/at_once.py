"""Turns whose codes are sampled at once: one pass over placeholders, as training scores them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from align_anything.core.errors import SampleError
from align_anything.core.types import Batch, Example, Piece, Response
from align_anything.models.adapter import bare_model
from align_anything.models.codes import CHUNK
from align_anything.models.family import FamilySpec
from align_anything.policies.token.collator import TokenCollator
from align_anything.policies.token.hidden import HiddenStates
from align_anything.rollouts.base import Sampling, restriction_of, sampled
from align_anything.rollouts.restricted import NOTHING, Draw, Restricted


class AtOnce:
    """Samples turns of `model`, each from its prompt and placeholders alone.

    The batch is that of the trainer's padded layout, so that masks, positions and media are those of the scores.
    """

    def __init__(self, model: PreTrainedModel, spec: FamilySpec, dtype: torch.dtype) -> None:
        """Takes a model, its family, whose codes are `parallel`, and what floating point media are cast to."""
        self.model, self.spec = model, spec
        self._collate = TokenCollator(spec, 'padded')
        self._hidden = HiddenStates(model, dtype, self._collate)

    def __call__(self, examples: Sequence[Example], sampling: Sampling, draw: Draw, version: int) -> list[Response]:
        """Returns a turn for the prompt of each Example. Raises SampleError where something else is to be written."""
        own, emission = self.spec.codes.parallel, sampling.emit
        if emission is None or emission.begins != own.kind:
            raise SampleError(
                f'a model that says each {own.kind} at once says nothing else: {own.kind} has to be asked'
            )
        restriction = restriction_of(self.spec, sampling)
        restricted, state = Restricted(restriction), restriction.grammar.start()
        chunk = torch.arange(1, own.length(own.size) + 1)
        placeholders = Piece(
            self.spec.codes.read_as(chunk, chunk), torch.ones(len(chunk)), token_tensors={CHUNK: chunk}
        )
        # Earlier turns of an episode are scored no more.
        prompts = [replace(one.prompt, weights=torch.zeros_like(one.prompt.weights)) for one in examples]
        batch = self._collate([Example(prompt, [placeholders]) for prompt in prompts])
        logits = self._logits(batch.to(self.model.device)).unflatten(0, (len(examples), len(chunk)))
        ids, values = [], []
        for number in range(len(chunk)):
            logprobs, left = restricted(logits[:, number], [state] * len(examples))
            ids.append(draw(left))
            values.append(logprobs.gather(1, ids[-1][:, None]).squeeze(1))
            # Which ids may stand where does not hang on those before.
            state.advance(int(ids[-1][0]))
        end = restriction.grammar.end
        ids.append(torch.full_like(ids[-1], end))
        values.append(torch.zeros_like(values[-1]))
        beside = {CHUNK: torch.cat([chunk, chunk.new_zeros(1)])}
        rows = zip(torch.stack(ids, 1).tolist(), torch.stack(values, 1).tolist(), strict=True)
        return [sampled(self.spec, *row, version, sampling, restriction.grammar, beside) for row in rows]

    def _logits(self, batch: Batch) -> Tensor:
        """The logits of each placeholder, example by example, `(placeholders, ids)`; of ids of other heads nothing."""
        states = self._hidden(batch).index_select(0, batch.inputs.score_index)
        (first, _), *_ = self.spec.codes.parallel.spans
        head = next(own for own in self.spec.heads(bare_model(self.model)) if own.span[0] <= first < own.span[1])
        logits = self.spec.logit_scale * head.linear(states if head.before is None else head.before(states)).float()
        if self.spec.softcap is not None:
            logits = self.spec.softcap * torch.tanh(logits / self.spec.softcap)
        return torch.nn.functional.pad(logits, (head.span[0], 0), value=NOTHING)
