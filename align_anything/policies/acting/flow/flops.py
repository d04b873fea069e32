"""The floating point operations of models that denoise chunks of actions."""

from __future__ import annotations

from contextlib import AbstractContextManager

from torch import nn

from align_anything.core.flops import Flops
from align_anything.core.types import Batch
from align_anything.models.adapter import bare_model
from align_anything.policies.acting.flops import Parts, Size, trained_share
from align_anything.policies.acting.flow.collator import FlowInputs

READ, EXPERT = 'language_model', 'action_expert'
"""What reads a step, once, and what denoises each chunk that hangs on it."""


def counted_reading(known: Parts, inputs: FlowInputs) -> AbstractContextManager[None]:
    """Counts what reading takes, in its first call for such steps."""
    return known.counted(*_reading(inputs), {}, READ)


def counted_denoising(known: Parts, inputs: FlowInputs) -> AbstractContextManager[None]:
    """Counts what denoising takes, in its first call for such chunks."""
    return known.counted(*_denoising(inputs), {}, EXPERT)


def flops_of(batch: Batch, model: nn.Module, known: Parts) -> dict[str, Flops]:
    """Returns the operations of an update on a batch; those of other rows go forward alone."""
    if not batch.stats.get('examples'):
        return {}
    bare = bare_model(model)
    shares = {READ: trained_share([bare.model.vlm]), EXPERT: trained_share([bare], [bare.model.vlm])}
    read, denoised = _reading(batch.inputs), _denoising(batch.inputs)
    # Gradients of what was read flow through the expert, which reads its keys and values.
    found = known.of(*read, shares) | known.of(*denoised, shares)
    if batch.unmatched is None:
        return found
    others = flops_of(batch.unmatched, model, known)
    return {name: flops + others.get(name, Flops()).forward_only() for name, flops in found.items()}


def _reading(inputs: FlowInputs) -> tuple[tuple[str, int, int], dict[str, Size]]:
    steps, length = inputs.seen.ids.shape
    return (READ, length, inputs.seen.frames.shape[1]), {READ: Size(float(steps), float(steps))}


def _denoising(inputs: FlowInputs) -> tuple[tuple[str, int, int], dict[str, Size]]:
    rows = float(len(inputs.step_of))
    return (EXPERT, inputs.seen.ids.shape[1], 0), {EXPERT: Size(rows, rows)}
