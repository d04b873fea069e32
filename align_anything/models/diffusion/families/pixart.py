"""PixArt-α and PixArt-Σ (Chen et al., 2023 and 2024): ε in a transformer under T5, with a variance that is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from align_anything.models.diffusion.pictures import PictureSpec, first_channels, rows
from align_anything.models.diffusion.several import filled, kept_apart, named, replaced, rows_of, split, strips, unstrip
from align_anything.models.diffusion.spec import Given

ALPHA_1024 = 128
"""Latents a side of the checkpoint that is told the size of a picture."""


class PixArtSpec(PictureSpec):
    """Predicts ε at integer timesteps. Captions are lowered, never cleaned of HTML as the pipeline does by default:

    that it does only where further packages are installed.
    """

    pipelines = ('PixArtAlphaPipeline', 'PixArtSigmaPipeline')
    side_multiple = 2
    one_size = ''

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
        conditions = {**conditions, **self._sizes(sample)}
        return first_channels(self._predicted(denoiser, sample, level, conditions), sample)

    def predict_several(self, denoiser: nn.Module, given: Sequence[Given], guidance: float) -> list[Tensor]:
        """Returns ε of samples of several sizes."""
        samples, patch = [own.sample for own in given], self.side_multiple
        conditions = {name: filled([own.conditions[name] for own in given]) for name in ('text', 'mask')}
        sizes = [self._sizes(sample) for sample in samples]
        conditions |= {name: torch.cat([own[name] for own in sizes]) for name in sizes[0]}
        tokens = [self.tokens(sample.shape[1:]) for sample in samples]
        present = rows_of(samples, tokens, conditions['text'].shape[1])
        (embed,) = named(denoiser, 'pos_embed')
        tables = present.turning(samples, [[_positions(embed, sample)] for sample in samples]).tables

        def embedded(strips: Tensor) -> Tensor:
            patches = embed.proj(strips).flatten(2).transpose(1, 2)
            return (patches + tables[0]).to(patches.dtype)

        with kept_apart(present), replaced(denoiser, 'pos_embed', 'forward', embedded):
            level = torch.cat([own.level for own in given])
            predicted = self._predicted(denoiser, strips(samples, patch, present.longest), level, conditions)
        return [
            unstrip(first_channels(own, sample), sample, patch)
            for own, sample in zip(split(predicted, samples), samples, strict=True)
        ]

    def _sizes(self, sample: Tensor) -> dict[str, Tensor]:
        """What the denoiser is told of the sizes of samples, `(rows, …)` by name; most are told nothing."""
        is_alpha = self.model_type == 'PixArtAlphaPipeline'
        if not is_alpha or self.configs[self.denoiser].get('sample_size') != ALPHA_1024:
            return {}
        height, width = (side * self.factor for side in sample.shape[-2:])
        return {
            'resolution': sample.new_tensor([[height, width]]).expand(len(sample), -1),
            'aspect_ratio': sample.new_tensor([[height / width]]).expand(len(sample), -1),
        }

    def _predicted(
        self, denoiser: nn.Module, sample: Tensor, level: Tensor, conditions: Mapping[str, Tensor]
    ) -> Tensor:
        return denoiser(
            sample,
            encoder_hidden_states=conditions['text'].to(sample.dtype),
            encoder_attention_mask=conditions['mask'],
            timestep=level,
            added_cond_kwargs={name: conditions.get(name) for name in ('resolution', 'aspect_ratio')},
            return_dict=False,
        )[0].float()


def _positions(embed: Any, sample: Tensor) -> Tensor:
    """What the denoiser adds to the patches of samples by where they are, `(tokens, size)`."""
    from diffusers.models.embeddings import get_2d_sincos_pos_embed

    grid = tuple(side // embed.patch_size for side in sample.shape[-2:])
    if grid == (embed.height, embed.width):
        return embed.pos_embed[0]
    return get_2d_sincos_pos_embed(
        embed_dim=embed.pos_embed.shape[-1],
        grid_size=grid,
        base_size=embed.base_size,
        interpolation_scale=embed.interpolation_scale,
        device=sample.device,
        output_type='pt',
    ).float()


SPEC = PixArtSpec
