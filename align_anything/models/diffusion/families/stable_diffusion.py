"""Stable Diffusion 1 and 2 (Rombach et al., 2022): a UNet under one CLIP encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from align_anything.models.diffusion.conditioned import token_ids
from align_anything.models.diffusion.pictures import PictureSpec, rows
from align_anything.models.diffusion.spec import CONVOLUTIONS


class StableDiffusionSpec(PictureSpec):
    """Predicts ε or v at integer timesteps."""

    pipelines = ('StableDiffusionPipeline',)
    denoiser = 'unet'
    one_size = CONVOLUTIONS
    trainable_text = ('text_encoder',)
    unopened = ('safety_checker', 'feature_extractor', 'image_encoder')

    @torch.no_grad()
    def encode_text(self, pipeline: Any, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
        """Returns `text` `(77, size)` of each, or where that is trained along `text_encoder`, its ids `(77,)`."""
        if self.trains_text:
            return rows(**token_ids(pipeline, self.trainable_text, prompts))
        text, _ = pipeline.encode_prompt(list(prompts), pipeline.device, 1, False)
        return rows(text=text)

    def predict(
        self, denoiser: nn.Module, sample: Tensor, level: Tensor, conditions: Mapping[str, Tensor], guidance: float
    ) -> Tensor:
        """Returns what the UNet predicts."""
        text = denoiser.text_encoder(conditions['text_encoder'])[0] if self.trains_text else conditions['text']
        text = text.to(sample.dtype)
        return denoiser(sample, level, encoder_hidden_states=text, return_dict=False)[0].float()


SPEC = StableDiffusionSpec
