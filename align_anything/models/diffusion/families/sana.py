"""Sana (Xie et al., 2024): a flow in linear attention over a deep autoencoder, under Gemma."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from align_anything.models.diffusion.pictures import PictureSpec, first_channels, rows
from align_anything.models.diffusion.spec import CONVOLUTIONS


class SanaSpec(PictureSpec):
    """Predicts the velocity at 1000 σ. An instruction goes before each prompt, but not before none."""

    pipelines = ('SanaPipeline',)
    one_size = CONVOLUTIONS
    default_text_length = 300

    @property
    def factor(self) -> int:
        """Pixels of a side for one latent."""
        return 2 ** (len(self.configs['vae']['encoder_block_out_channels']) - 1)

    @torch.no_grad()
    def encode_text(self, pipeline: Any, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
        """Returns `text` `(length, size)` and `mask` `(length,)` of each."""
        instruction = inspect.signature(type(pipeline).__call__).parameters['complex_human_instruction'].default
        found = []
        for prompt in prompts:
            text, mask, _, _ = pipeline.encode_prompt(
                [prompt],
                do_classifier_free_guidance=False,
                device=pipeline.device,
                max_sequence_length=self.text_length,
                complex_human_instruction=instruction if prompt else None,
            )
            found += rows(text=text, mask=mask)
        return found

    @torch.no_grad()
    def encode_media(self, pipeline: Any, fitted: Tensor) -> Tensor:
        """Returns the latents of an autoencoder that has no distribution, scaled."""
        vae = pipeline.vae
        return self.scaled(vae.encode(fitted.to(vae.device, vae.dtype)).latent.float())

    def predict(
        self, denoiser: nn.Module, sample: Tensor, level: Tensor, conditions: Mapping[str, Tensor], guidance: float
    ) -> Tensor:
        """Returns the velocity."""
        output = denoiser(
            sample,
            encoder_hidden_states=conditions['text'].to(sample.dtype),
            encoder_attention_mask=conditions['mask'],
            timestep=level * self.timesteps * self.configs[self.denoiser].get('timestep_scale', 1.0),
            return_dict=False,
        )[0]
        return first_channels(output.float(), sample)


SPEC = SanaSpec
