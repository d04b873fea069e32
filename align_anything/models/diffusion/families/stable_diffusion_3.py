"""Stable Diffusion 3 and 3.5 (Esser et al., 2024): a flow in a transformer under two CLIP encoders and T5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from align_anything.core.errors import ModelError
from align_anything.models.diffusion.pictures import PictureSpec, rows


class StableDiffusion3Spec(PictureSpec):
    """Predicts the velocity at 1000 σ. Without T5 its tokens are zeros."""

    pipelines = ('StableDiffusion3Pipeline',)
    lora_targets = tuple(
        f'attn.{name}' for name in 'to_q to_k to_v to_out.0 add_q_proj add_k_proj add_v_proj to_add_out'.split()
    )
    side_multiple = 2
    unopened = ('image_encoder', 'feature_extractor')
    default_text_length = 256

    def check(self) -> None:
        """Raises ModelError for a resolution with more patches than the denoiser has positions."""
        super().check()
        most = self.configs[self.denoiser]['pos_embed_max_size'] * self.factor * self.side_multiple
        if max(self.default_size()) > most:
            raise ModelError(f'{self.folder} has positions for sides of at most {most} pixels.')

    @torch.no_grad()
    def encode_text(self, pipeline: Any, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
        """Returns `text` `(length, size)` and `pooled` `(size,)` of each."""
        text, _, pooled, _ = pipeline.encode_prompt(
            list(prompts),
            None,
            None,
            device=pipeline.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.text_length,
        )
        return rows(text=text, pooled=pooled)

    def predict(
        self, denoiser: nn.Module, sample: Tensor, level: Tensor, conditions: Mapping[str, Tensor], guidance: float
    ) -> Tensor:
        """Returns the velocity."""
        return denoiser(
            hidden_states=sample,
            timestep=level * self.timesteps,
            encoder_hidden_states=conditions['text'].to(sample.dtype),
            pooled_projections=conditions['pooled'].to(sample.dtype),
            return_dict=False,
        )[0].float()


SPEC = StableDiffusion3Spec
