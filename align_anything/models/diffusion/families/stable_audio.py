"""Stable Audio Open (Evans et al., 2024): v at an angle, under T5 and the seconds at which a clip begins and ends."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from align_anything.core.errors import ModelError
from align_anything.models.diffusion.library import require_beside
from align_anything.models.diffusion.pictures import rows
from align_anything.models.diffusion.prepared import Size
from align_anything.models.diffusion.sounds import WaveformSpec


class StableAudioSpec(WaveformSpec):
    """Predicts v of latents `(channels, length)`, which are always as many as the longest clip has."""

    pipelines = ('StableAudioPipeline',)

    @property
    def longest(self) -> float:
        """Seconds of the longest clip."""
        return self.configs[self.denoiser]['sample_size'] * self.factor / self.audio_rate

    @property
    def seconds(self) -> float:
        """Length of a clip."""
        return self.sizing.seconds or self.longest

    def check(self) -> None:
        """Raises ModelError for a clip that is too short or too long."""
        super().check()
        require_beside('torchsde', self.model_type)
        if self.seconds > self.longest:
            raise ModelError(f'seconds {self.seconds} for {self.model_type}: clips have at most {self.longest:.2f}.')

    def latent_shape(self, size: Size) -> tuple[int, ...]:
        """Returns `(channels, length)`."""
        config = self.configs[self.denoiser]
        return config['in_channels'], config['sample_size']

    @torch.no_grad()
    def encode_text(self, pipeline: Any, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
        """Returns `text` `(length, size)`, of no prompt zeros, and `duration` `(1, size)` of each."""
        text = pipeline.encode_prompt(list(prompts), pipeline.device, False)
        start, end = pipeline.encode_duration(0.0, self.seconds, pipeline.device, False, len(prompts))
        text = torch.cat([text, start, end], 1)
        empty = torch.tensor([not prompt for prompt in prompts], device=text.device)
        return rows(text=text.masked_fill(empty[:, None, None], 0), duration=torch.cat([start, end], 2))

    def encode_media(self, pipeline: Any, fitted: Tensor) -> Tensor:
        """Returns the mode of the autoencoder's distribution, silence behind the clip."""
        return self.encoded(pipeline, fitted, self.configs[self.denoiser]['sample_size'])

    @torch.no_grad()
    def decode_latents(self, pipeline: Any, latents: Tensor) -> list[Any]:
        """Returns clips."""
        vae = pipeline.vae
        return self.as_clips(vae.decode(latents.to(vae.device, vae.dtype)).sample)

    def predict(
        self, denoiser: nn.Module, sample: Tensor, level: Tensor, conditions: Mapping[str, Tensor], guidance: float
    ) -> Tensor:
        """Returns v."""
        from diffusers.models.embeddings import get_1d_rotary_pos_embed

        rotary = get_1d_rotary_pos_embed(
            self.configs[self.denoiser]['attention_head_dim'] // 2,
            sample.shape[2] + 1,
            use_real=True,
            repeat_interleave_real=False,
        )
        return denoiser(
            sample,
            level / math.pi * 2,
            encoder_hidden_states=conditions['text'].to(sample.dtype),
            global_hidden_states=conditions['duration'].to(sample.dtype),
            rotary_embedding=tuple(part.to(sample.device) for part in rotary),
            return_dict=False,
        )[0].float()

    def levels(self, steps: int, shape: Sequence[int]) -> Tensor:
        """Returns the angles whose tangents are the noise levels of the scheduler."""
        return super().levels(steps, shape).atan()


SPEC = StableAudioSpec
