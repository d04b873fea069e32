"""A denoiser with a score head as a function from Batches to a value of each denoising step: a critic."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from align_anything.core.errors import ModelError
from align_anything.core.flops import Flops
from align_anything.core.types import Batch, MediaKind, Scored
from align_anything.models.diffusion.score import DenoiserForScore
from align_anything.policies.denoising.collator import DenoisingCollator, DenoisingInputs
from align_anything.policies.denoising.prediction import predict_several
from align_anything.policies.denoising.selfcheck import require_sound


class DenoisingCritic(nn.Module):
    """Scores states: `forward(batch) -> Scored` with `(N,)` float32, of what stood before each step.

    A state is a noised sample, its level and the prompt; what followed it is not read.
    """

    def __init__(self, model: DenoiserForScore, collate: DenoisingCollator, *, dtype: torch.dtype) -> None:
        """Wraps `model`, adapters applied; samples and conditions are cast to `dtype`."""
        super().__init__()
        self.model = model
        self.collate = collate
        self.dtype = dtype

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
            raise ModelError('a critic of denoising steps has values and nothing else: media end at their last step.')
        inputs: DenoisingInputs = batch.inputs
        predicted = predict_several(
            self.collate.spec,
            self.model.denoiser,
            [own.given() for own in inputs.sizes],
            None,
            self.collate.guidance,
            self.dtype,
        )
        values = inputs.in_order([self.model.read(own) for own in predicted])
        return Scored(values if len(batch.weights) else values[:0] + 0.0 * values.sum())

    def check(self, module: Any, device: torch.device) -> None:
        """Compares its values of samples beside each other with those of each alone; see `require_sound`."""
        require_sound(self.model, self.collate, self.dtype, module, device)

    def flops(self, batch: Batch) -> dict[str, Flops]:
        """Returns none: they are not counted."""
        return {}

    def set_temperature(self, temperature: float, of_media: Mapping[MediaKind, float] = MappingProxyType({})) -> None:
        """Raises ModelError: what is not sampled from has no temperature."""
        raise ModelError('a score head has no temperature.')
