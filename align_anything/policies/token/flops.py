"""The floating point operations of a batch of tokens."""

from __future__ import annotations

from collections.abc import Sequence

from align_anything.core.flops import Flops
from align_anything.core.types import Batch
from align_anything.models.family import FamilySpec
from align_anything.models.work import Sizes, Span, Work, media_in, rows_scored, tower_spans
from align_anything.policies.token.layouts import TokenInputs


def flops_of(batch: Batch, spec: FamilySpec, work: Work) -> dict[str, Flops]:
    """Returns the operations of a batch by component; responses of other rows go forward alone, fillers count nothing.

    What a model reads without a prompt, for guidance, is counted as text; its second row of the head is not.
    """
    if not batch.stats.get('examples'):
        return {}
    found = work.of(_sizes(batch, spec))
    if batch.unmatched is None:
        return found
    others = flops_of(batch.unmatched, spec, work)
    return {name: flops + others[name].forward_only() for name, flops in found.items()}


def _sizes(batch: Batch, spec: FamilySpec) -> Sizes:
    inputs: TokenInputs = batch.inputs
    vision, audio = tower_spans(inputs.arguments, spec)
    media = media_in(inputs.arguments['input_ids'], spec)
    return Sizes(_spans(inputs), media, vision, audio, *rows_scored(inputs.targets, spec))


def _spans(inputs: TokenInputs) -> Sequence[Span]:
    given = inputs.arguments
    if 'segments' in given:
        return [Span(span.stop - span.start, span.prefix_length) for span in given['segments'].spans]
    if 'cu_seq_lens_q' in given:
        return [Span(length) for length in given['cu_seq_lens_q'].diff().tolist()]
    return [Span(length) for length in given['attention_mask'].sum(1).tolist()]
