"""Stable Diffusion 3 and 3.5 (Esser et al., 2024): a flow in a transformer under two CLIP encoders and T5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from align_anything.models.diffusion.pictures import PictureSpec, rows
from align_anything.models.diffusion.several import filled, kept_apart, named, replaced, rows_of, split, strips, unstrip
from align_anything.models.diffusion.spec import Given


class StableDiffusion3Spec(PictureSpec):
    """Predicts the velocity at 1000 σ. Without T5 its tokens are zeros."""

    pipelines = ('StableDiffusion3Pipeline',)
    lora_targets = tuple(
        f'attn.{name}' for name in 'to_q to_k to_v to_out.0 add_q_proj add_k_proj add_v_proj to_add_out'.split()
    )
    side_multiple = 2
    unopened = ('image_encoder', 'feature_extractor')
    default_text_length = 256
    one_size = ''

    @property
    def most_positions(self) -> int:
        """Patches of a side in the table of the denoiser, of which it takes the middle."""
        return self.configs[self.denoiser]['pos_embed_max_size']

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
        return self._predicted(denoiser, sample, level, conditions['text'], conditions['pooled'])

    def predict_several(self, denoiser: nn.Module, given: Sequence[Given], guidance: float) -> list[Tensor]:
        """Returns the velocity of samples of several sizes."""
        samples, patch = [own.sample for own in given], self.side_multiple
        text = filled([own.conditions['text'] for own in given])
        tokens = [self.tokens(sample.shape[1:]) for sample in samples]
        present = rows_of(samples, tokens, text.shape[1], text=text.shape[1], text_first=False)
        (embed,) = named(denoiser, 'pos_embed')
        tables = filled(
            [embed.cropped_pos_embed(*sample.shape[-2:]).expand(len(sample), -1, -1) for sample in samples],
            present.longest,
        )
        with kept_apart(present), replaced(denoiser, 'pos_embed', 'cropped_pos_embed', lambda *size: tables):
            predicted = self._predicted(
                denoiser,
                strips(samples, patch, present.longest),
                torch.cat([own.level for own in given]),
                text,
                torch.cat([own.conditions['pooled'] for own in given]),
            )
        return [unstrip(own, sample, patch) for own, sample in zip(split(predicted, samples), samples, strict=True)]

    def _predicted(self, denoiser: nn.Module, sample: Tensor, level: Tensor, text: Tensor, pooled: Tensor) -> Tensor:
        return denoiser(
            hidden_states=sample,
            timestep=level * self.timesteps,
            encoder_hidden_states=text.to(sample.dtype),
            pooled_projections=pooled.to(sample.dtype),
            return_dict=False,
        )[0].float()


SPEC = StableDiffusion3Spec
