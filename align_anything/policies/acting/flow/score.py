"""A model that denoises chunks with a score head: a value of each denoising step, a critic."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from align_anything.core.errors import ModelError
from align_anything.core.flops import Flops
from align_anything.core.types import Batch, MediaKind, Scored
from align_anything.models.adapter import bare_model
from align_anything.models.score import SCORE_HEAD
from align_anything.policies.acting.flops import Parts
from align_anything.policies.acting.flow.collator import FlowCollator, FlowInputs
from align_anything.policies.acting.flow.flops import counted_denoising, counted_reading, flops_of
from align_anything.policies.acting.flow.prediction import read, spread, velocity


class FlowCritic(nn.Module):
    """Scores states: `forward(batch) -> Scored` with `(N,)` float32, of what stood before each denoising step.

    A state is what was seen and said, and the chunk as far as it is denoised; what followed is not read.
    """

    def __init__(self, model: nn.Module, collate: FlowCollator, *, dtype: torch.dtype) -> None:
        """Wraps `model`, which has a score head, adapters applied."""
        super().__init__()
        self.model = model
        self.collate = collate
        self.dtype = dtype
        self._parts = Parts()

    def forward(
        self,
        batch: Batch,
        *,
        entropy: bool = False,
        bootstrap: bool = False,
        routing: bool = False,
        further: bool = False,
    ) -> Scored:
        """Returns the value of each unit `(N,)`. A batch of none has a gradient all the same."""
        if entropy or bootstrap or routing or further:
            raise ModelError('a critic of denoised actions has values of their steps and nothing else.')
        inputs: FlowInputs = batch.inputs
        with counted_reading(self._parts, inputs):
            cache = spread(read(self.model, inputs.seen, self.dtype), inputs.step_of, len(inputs.seen.ids))
        with counted_denoising(self._parts, inputs):
            predicted = velocity(
                self.model, cache, inputs.seen, inputs.step_of, inputs.sample, inputs.level, self.dtype
            )
        values = bare_model(self.model).get_submodule(SCORE_HEAD)(predicted.mean(1))
        return Scored(values if len(batch.weights) else values[:0] + 0.0 * values.sum())

    def check(self, module: Any, device: torch.device) -> None:
        """Does nothing: what it reads is what the policy reads, whose check stands for both."""

    def flops(self, batch: Batch) -> dict[str, Flops]:
        """Returns the operations of an update on the batch, known once steps of its kind were read."""
        return flops_of(batch, self.model, self._parts)

    def set_temperature(self, temperature: float, of_media: Mapping[MediaKind, float] = MappingProxyType({})) -> None:
        """Raises ModelError: what is not sampled from has no temperature."""
        raise ModelError('a score head has no temperature.')
