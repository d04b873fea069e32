"""PixArt-α and PixArt-Σ (Chen et al., 2023 and 2024): ε in a transformer under T5, with a variance that is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from align_anything.models.diffusion.pictures import PictureSpec, first_channels, rows

ALPHA_1024 = 128
"""Latents a side of the checkpoint that is told the size of a picture."""


class PixArtSpec(PictureSpec):
    """Predicts ε at integer timesteps. Captions are lowered, never cleaned of HTML as the pipeline does by default:

    that it does only where further packages are installed.
    """

    pipelines = ('PixArtAlphaPipeline', 'PixArtSigmaPipeline')
    side_multiple = 2
    one_size = 'its denoiser has one table of positions for all rows.'

    @property
    def default_text_length(self) -> int:
        """Most tokens of a prompt, as the pipeline has it."""
        return 120 if self.model_type == 'PixArtAlphaPipeline' else 300

    @torch.no_grad()
    def encode_text(self, pipeline: Any, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
        """Returns `text` `(length, size)` and `mask` `(length,)` of each."""
        text, mask, _, _ = pipeline.encode_prompt(
            list(prompts), False, device=pipeline.device, max_sequence_length=self.text_length
        )
        return rows(text=text, mask=mask)

    def predict(
        self, denoiser: nn.Module, sample: Tensor, level: Tensor, conditions: Mapping[str, Tensor], guidance: float
    ) -> Tensor:
        """Returns ε."""
        sizes: dict[str, Tensor | None] = {'resolution': None, 'aspect_ratio': None}
        is_alpha = self.model_type == 'PixArtAlphaPipeline'
        if is_alpha and self.configs[self.denoiser].get('sample_size') == ALPHA_1024:
            height, width = (side * self.factor for side in sample.shape[-2:])
            sizes = {
                'resolution': sample.new_tensor([[height, width]]).expand(len(sample), -1),
                'aspect_ratio': sample.new_tensor([[height / width]]).expand(len(sample), -1),
            }
        output = denoiser(
            sample,
            encoder_hidden_states=conditions['text'].to(sample.dtype),
            encoder_attention_mask=conditions['mask'],
            timestep=level,
            added_cond_kwargs=sizes,
            return_dict=False,
        )[0]
        return first_channels(output.float(), sample)


SPEC = PixArtSpec
