"""LTX-Video (HaCohen et al., 2024): a flow over tokens of a strongly compressing autoencoder, under T5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from align_anything.core.errors import ModelError
from align_anything.models.diffusion.packing import even_sigmas
from align_anything.models.diffusion.pictures import rows
from align_anything.models.diffusion.several import filled, kept_apart, named, replaced, rows_of, split
from align_anything.models.diffusion.spec import Given
from align_anything.models.diffusion.videos import VideoSpec


class LTXSpec(VideoSpec):
    """Predicts the velocity at 1000 σ of latents that are standardised by what the autoencoder's weights hold."""

    pipelines = ('LTXPipeline',)
    default_text_length = 128
    one_size = ''
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
        tokens = self._predicted(denoiser, _tokens(sample), sample, level, conditions['text'], conditions['mask'])
        return tokens.transpose(1, 2).reshape(sample.shape)

    def predict_several(self, denoiser: nn.Module, given: Sequence[Given], guidance: float) -> list[Tensor]:
        """Returns the velocity of samples of several sizes."""
        samples = [own.sample for own in given]
        text, mask = (filled([own.conditions[name] for own in given]) for name in ('text', 'mask'))
        present = rows_of(samples, [self.tokens(sample.shape[1:]) for sample in samples], text.shape[1])
        (embed,) = named(denoiser, 'rope')
        tables = [[table[0] for table in embed(_tokens(own), *own.shape[2:], self._scale)] for own in samples]
        present = present.turning(samples, tables)
        with kept_apart(present), replaced(denoiser, 'rope', 'forward', lambda *given: present.tables):
            predicted = self._predicted(
                denoiser,
                filled([_tokens(sample) for sample in samples], present.longest),
                samples[0],
                torch.cat([own.level for own in given]),
                text,
                mask,
            )
        return [
            own[:, : self.tokens(sample.shape[1:])].transpose(1, 2).reshape(sample.shape)
            for own, sample in zip(split(predicted, samples), samples, strict=True)
        ]

    @property
    def _scale(self) -> tuple[float, float, float]:
        return self.frame_factor / self.fps, self.factor, self.factor

    def _predicted(
        self, denoiser: nn.Module, tokens: Tensor, like: Tensor, level: Tensor, text: Tensor, mask: Tensor
    ) -> Tensor:
        frames, height, width = like.shape[2:]
        return denoiser(
            hidden_states=tokens,
            encoder_hidden_states=text.to(tokens.dtype),
            timestep=level * self.timesteps,
            encoder_attention_mask=mask,
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=self._scale,
            return_dict=False,
        )[0].float()

    def sigmas(self, steps: int) -> list[float] | None:
        """Returns even noise levels."""
        return even_sigmas(steps)

    def _ratio(self, name: str, patch: str) -> int:
        config = self.configs['vae']
        scaling = config.get('spatio_temporal_scaling', (True, True, True, False))
        return config.get(name) or config.get(patch, 1) * 2 ** sum(scaling)


def _tokens(sample: Tensor) -> Tensor:
    return sample.flatten(2).transpose(1, 2)


SPEC = LTXSpec
