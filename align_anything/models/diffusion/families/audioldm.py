"""AudioLDM (Liu et al., 2023): ε of spectrograms, under one embedding of CLAP, which is added to that of the time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from align_anything.models.diffusion.pictures import rows
from align_anything.models.diffusion.spectrograms import SpectrogramSpec


class AudioLDMSpec(SpectrogramSpec):
    """Predicts ε at integer timesteps."""

    pipelines = ('AudioLDMPipeline',)

    @torch.no_grad()
    def encode_text(self, pipeline: Any, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
        """Returns `text` `(size,)`, of length 1, of each."""
        return rows(text=pipeline._encode_prompt(list(prompts), pipeline.device, 1, False))

    def predict(
        self, denoiser: nn.Module, sample: Tensor, level: Tensor, conditions: Mapping[str, Tensor], guidance: float
    ) -> Tensor:
        """Returns ε."""
        text = conditions['text'].to(sample.dtype)
        return denoiser(sample, level, encoder_hidden_states=None, class_labels=text, return_dict=False)[0].float()


SPEC = AudioLDMSpec
