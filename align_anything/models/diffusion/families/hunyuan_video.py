"""HunyuanVideo (Kong et al., 2024): a flow under Llama and CLIP, told its guidance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from align_anything.models.diffusion.pictures import rows
from align_anything.models.diffusion.several import filled, kept_apart, named, replaced, rows_of, split, strips, unstrip
from align_anything.models.diffusion.spec import Given
from align_anything.models.diffusion.turning import first_turned_in_pairs
from align_anything.models.diffusion.videos import VideoSpec


class HunyuanVideoSpec(VideoSpec):
    """Predicts the velocity at 1000 σ."""

    pipelines = ('HunyuanVideoPipeline',)
    side_multiple = 2
    default_text_length = 256
    one_size = ''
    frames, fps, pixels = 129, 15.0, (720, 1280)

    @property
    def factor(self) -> int:
        """Pixels of a side for one latent."""
        return self.configs['vae'].get('spatial_compression_ratio', 8)

    @torch.no_grad()
    def encode_text(self, pipeline: Any, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
        """Returns `text` `(length, size)`, its `mask` `(length,)` and `pooled` `(size,)` of each."""
        text, pooled, mask = pipeline.encode_prompt(
            list(prompts), device=pipeline.device, max_sequence_length=self.text_length
        )
        return rows(text=text, mask=mask, pooled=pooled)

    def predict(
        self, denoiser: nn.Module, sample: Tensor, level: Tensor, conditions: Mapping[str, Tensor], guidance: float
    ) -> Tensor:
        """Returns the velocity."""
        return self._predicted(denoiser, sample, level, conditions, guidance)

    def predict_several(self, denoiser: nn.Module, given: Sequence[Given], guidance: float) -> list[Tensor]:
        """Returns the velocity of samples of several sizes."""
        samples, patch = [own.sample for own in given], self.side_multiple
        conditions = {name: filled([own.conditions[name] for own in given]) for name in ('text', 'mask')}
        conditions['pooled'] = torch.cat([own.conditions['pooled'] for own in given])
        length = conditions['text'].shape[1]
        tokens = [self.tokens(sample.shape[1:]) for sample in samples]
        present = rows_of(samples, tokens, length, text=length, text_first=False, turn=first_turned_in_pairs)
        (embed,) = named(denoiser, 'rope')
        present = present.turning(samples, [embed(sample) for sample in samples])
        with kept_apart(present), replaced(denoiser, 'rope', 'forward', lambda sample: None):
            predicted = self._predicted(
                denoiser,
                strips(samples, patch, present.longest)[:, :, None],
                torch.cat([own.level for own in given]),
                conditions,
                guidance,
            )[:, :, 0]
        return [unstrip(own, sample, patch) for own, sample in zip(split(predicted, samples), samples, strict=True)]

    def _predicted(
        self, denoiser: nn.Module, sample: Tensor, level: Tensor, conditions: Mapping[str, Tensor], guidance: float
    ) -> Tensor:
        told = None
        if self.configs[self.denoiser].get('guidance_embeds'):
            told = torch.full((len(sample),), guidance, dtype=sample.dtype, device=sample.device) * 1000.0
        return denoiser(
            hidden_states=sample,
            timestep=level * self.timesteps,
            encoder_hidden_states=conditions['text'].to(sample.dtype),
            encoder_attention_mask=conditions['mask'].to(sample.dtype),
            pooled_projections=conditions['pooled'].to(sample.dtype),
            guidance=told,
            return_dict=False,
        )[0].float()

    def sigmas(self, steps: int) -> list[float] | None:
        """Returns noise levels evenly from 1 down to, but without, 0."""
        return numpy.linspace(1.0, 0.0, steps + 1)[:-1].tolist()


SPEC = HunyuanVideoSpec
