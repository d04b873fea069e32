"""Which head scores an id, and among which ids: text by the output embedding, codes of media by theirs, in ranges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from align_anything.core.errors import ModelError
from align_anything.core.types import MediaKind
from align_anything.models.codes import TEXT, MediaCodes
from align_anything.models.family import FamilySpec
from align_anything.models.output_heads import OutputHead
from align_anything.policies.guidance import guided
from align_anything.policies.token.logprob import Group, LogProbHead, Span, inside


def make_head(spec: FamilySpec, model: nn.Module) -> nn.Module:
    """Returns what scores targets after hidden states: over the whole vocabulary, or among what could stand there.

    Raises ModelError for a model without an output embedding.
    """
    heads = spec.heads(model)
    if not heads:
        raise ModelError(
            f'{type(model).__name__} has no output embedding; load it through a class with a language-model head.'
        )
    if spec.codes is not None and spec.codes.ranged:
        return RangeHead(heads, spec.codes, spec.logit_scale, spec.softcap)
    return LogProbHead(heads[0].linear, spec.logit_scale, spec.softcap)


class Guidance(NamedTuple):
    """What leads scores from one prediction to another.

    Attributes:
        states: that make the prediction without the prompt, `(N, size)`; the same as with it for what is not guided.
        scale: 0 for that prediction, 1 for the one with the prompt; above 1 beyond it.
    """

    states: Tensor
    scale: float


class RangeHead(nn.Module):
    """Scores each target among the ids that could have stood in its place, with the head that writes these.

    Every rank calls every head, with an empty selection if need be: what ranks hold differs, what they call must not.
    """

    def __init__(self, heads: Sequence[OutputHead], codes: MediaCodes, scale: float, softcap: float | None) -> None:
        """Takes the heads of a family. Raises ModelError for a set of ids that two of them write."""
        super().__init__()
        self.codes = codes
        self.temperatures = codes.by_set(1.0)
        self.first = [head.span[0] for head in heads]
        self.scorers = nn.ModuleList(LogProbHead(head.linear, scale, softcap) for head in heads)
        self.before = nn.ModuleList(nn.Identity() if head.before is None else head.before for head in heads)
        self.sets: list[list[tuple[int, list[Span]]]] = [[] for _ in heads]
        for number, spans in enumerate(codes.sets(max(head.span[1] for head in heads))):
            if codes.wordless and number == TEXT:
                continue
            owner = next((at for at, head in enumerate(heads) if _holds(head.span, spans)), None)
            if owner is None:
                raise ModelError(f'no one head of the model writes all of the ids {spans}, which stand side by side')
            first = self.first[owner]
            self.sets[owner].append((number, [(start - first, stop - first) for start, stop in spans]))

    def set_temperature(self, temperature: float, of_media: Mapping[MediaKind, float] = MappingProxyType({})) -> None:
        """Divides what goes into the softmax by `temperature` from now on, or by that of its kind, behind the cap."""
        self.temperatures = self.codes.by_set(temperature, of_media)

    def forward(
        self, hidden: Tensor, targets: Tensor, with_entropy: bool = False, guidance: Guidance | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Returns float32 log-probabilities `(N,)` of `targets` `(N,)` after `hidden` `(N, size)`, and entropies."""
        numbers, rows = self.codes.set_of(targets), self.codes.rows_of(targets)
        found, order = [], []
        for first, before, scorer, sets in zip(self.first, self.before, self.scorers, self.sets, strict=True):
            own = torch.isin(numbers, torch.tensor([number for number, _ in sets], device=numbers.device))
            index = own.nonzero().flatten()
            among = numbers[index]
            groups = [
                Group((among == number).nonzero().flatten(), spans, self.temperatures[number]) for number, spans in sets
            ]
            if guidance is None:
                states = before(hidden[index])
            else:
                both = before(torch.cat([hidden[index], guidance.states[index]]))
                states = guided(*both.chunk(2), guidance.scale)
            found.append(scorer(states, rows[index] - first, with_entropy, groups))
            order.append(index)
        values = torch.cat([values for values, _ in found])
        back = torch.cat(order).argsort()
        entropies = torch.cat([entropy for _, entropy in found])[back] if with_entropy else None
        return values[back], entropies


def _holds(span: Span, spans: Sequence[Span]) -> bool:
    return all(span[0] <= start and stop <= span[1] for start, stop in spans)


def among(codes: MediaCodes, targets: Tensor, rows: int) -> Tensor:
    """Returns which of the ids below `rows` could stand where each target stands, `(N, rows)` bool."""
    masks = torch.stack([inside(spans, rows, targets.device) for spans in codes.sets(rows)])
    return masks[codes.set_of(targets)]
