"""AudioLDM 2 (Liu et al., 2023): ε of spectrograms, under CLAP, T5, and what a GPT-2 makes of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from align_anything.models.diffusion.pictures import rows
from align_anything.models.diffusion.spectrograms import SpectrogramSpec


class AudioLDM2Spec(SpectrogramSpec):
    """Predicts ε at integer timesteps."""

    pipelines = ('AudioLDM2Pipeline',)
    no_checkpointing = 'diffusers hands over the arguments of its blocks in another order there.'

    @torch.no_grad()
    def encode_text(self, pipeline: Any, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
        """Returns `text` `(length, size)` of T5, its `mask`, and `generated` `(8, size)` of GPT-2 of each."""
        found = []
        for prompt in prompts:
            text, mask, generated = pipeline.encode_prompt([prompt], pipeline.device, 1, False)
            found += rows(text=text, mask=mask, generated=generated)
        return found

    def predict(
        self, denoiser: nn.Module, sample: Tensor, level: Tensor, conditions: Mapping[str, Tensor], guidance: float
    ) -> Tensor:
        """Returns ε."""
        return denoiser(
            sample,
            level,
            encoder_hidden_states=conditions['generated'].to(sample.dtype),
            encoder_hidden_states_1=conditions['text'].to(sample.dtype),
            encoder_attention_mask_1=conditions['mask'],
            return_dict=False,
        )[0].float()


SPEC = AudioLDM2Spec
