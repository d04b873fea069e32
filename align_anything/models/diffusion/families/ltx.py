"""LTX-Video (HaCohen et al., 2024): a flow over tokens of a strongly compressing autoencoder, under T5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from align_anything.core.errors import ModelError
from align_anything.models.diffusion.packing import even_sigmas
from align_anything.models.diffusion.pictures import rows
from align_anything.models.diffusion.videos import VideoSpec


class LTXSpec(VideoSpec):
    """Predicts the velocity at 1000 σ of latents that are standardised by what the autoencoder's weights hold."""

    pipelines = ('LTXPipeline',)
    default_text_length = 128
    frames, fps, pixels = 161, 25.0, (512, 704)

    @property
    def factor(self) -> int:
        """Pixels of a side for one latent."""
        return self._ratio('spatial_compression_ratio', 'patch_size')

    @property
    def frame_factor(self) -> int:
        """Frames for one latent, after the first."""
        return self._ratio('temporal_compression_ratio', 'patch_size_t')

    def check(self) -> None:
        """Raises ModelError for a denoiser with patches, and as all families do."""
        super().check()
        config = self.configs[self.denoiser]
        if (config.get('patch_size', 1), config.get('patch_size_t', 1)) != (1, 1):
            raise ModelError(f'{self.folder}/{self.denoiser} has patches of several latents, which no LTX-Video had.')

    @torch.no_grad()
    def encode_text(self, pipeline: Any, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
        """Returns `text` `(length, size)` and `mask` `(length,)` of each."""
        text, mask, _, _ = pipeline.encode_prompt(
            list(prompts),
            do_classifier_free_guidance=False,
            max_sequence_length=self.text_length,
            device=pipeline.device,
        )
        return rows(text=text, mask=mask)

    @torch.no_grad()
    def encode_media(self, pipeline: Any, fitted: Tensor) -> Tensor:
        """Returns the mode of the autoencoder's distribution, standardised."""
        vae = pipeline.vae
        latents = vae.encode(fitted.to(vae.device, vae.dtype)).latent_dist.mode().float()
        return pipeline._normalize_latents(latents, vae.latents_mean, vae.latents_std, vae.config.scaling_factor)

    @torch.no_grad()
    def decode_latents(self, pipeline: Any, latents: Tensor) -> list[Any]:
        """Returns `Video`s; a decoder that is told a timestep is told 0."""
        vae = pipeline.vae
        own = latents.to(vae.device, vae.dtype)
        own = pipeline._denormalize_latents(own, vae.latents_mean, vae.latents_std, vae.config.scaling_factor)
        timestep = own.new_zeros(len(own)) if vae.config.timestep_conditioning else None
        return self.as_videos(vae.decode(own, timestep, return_dict=False)[0])

    def predict(
        self, denoiser: nn.Module, sample: Tensor, level: Tensor, conditions: Mapping[str, Tensor], guidance: float
    ) -> Tensor:
        """Returns the velocity."""
        frames, height, width = sample.shape[2:]
        tokens = denoiser(
            hidden_states=sample.flatten(2).transpose(1, 2),
            encoder_hidden_states=conditions['text'].to(sample.dtype),
            timestep=level * self.timesteps,
            encoder_attention_mask=conditions['mask'],
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=(self.frame_factor / self.fps, self.factor, self.factor),
            return_dict=False,
        )[0]
        return tokens.float().transpose(1, 2).reshape(sample.shape)

    def sigmas(self, steps: int) -> list[float] | None:
        """Returns even noise levels."""
        return even_sigmas(steps)

    def _ratio(self, name: str, patch: str) -> int:
        config = self.configs['vae']
        scaling = config.get('spatio_temporal_scaling', (True, True, True, False))
        return config.get(name) or config.get(patch, 1) * 2 ** sum(scaling)


SPEC = LTXSpec
