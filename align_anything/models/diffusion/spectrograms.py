"""What families share that denoise spectrograms, which a HiFi-GAN turns into sounds."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from align_anything.models.diffusion.prepared import Size
from align_anything.models.diffusion.sounds import SoundSpec
from align_anything.models.diffusion.spec import CONVOLUTIONS

WINDOW = 6.4
"""Hops of a window: 1024 samples of which each 160 are one frame."""
QUIETEST = 1e-5


class SpectrogramSpec(SoundSpec):
    """A family of latents `(channels, frames, bins)` of a log-mel spectrogram."""

    denoiser = 'unet'
    one_size = CONVOLUTIONS
    unopened = ('feature_extractor',)

    @cached_property
    def vocoder(self) -> Any:
        """The configuration of what makes waveforms of spectrograms; files hold what differs from its class alone."""
        from transformers import SpeechT5HifiGanConfig

        return SpeechT5HifiGanConfig(**self.configs['vocoder'])

    @property
    def audio_rate(self) -> int:
        """Samples per second."""
        return self.vocoder.sampling_rate

    @property
    def hop(self) -> int:
        """Samples for one frame of the spectrogram."""
        return math.prod(self.vocoder.upsample_rates)

    @property
    def side_factor(self) -> int:
        """Frames, and bins, for one latent."""
        return 2 ** (len(self.configs['vae']['block_out_channels']) - 1)

    @property
    def factor(self) -> int:
        """Samples for one latent."""
        return self.hop * self.side_factor

    @property
    def seconds(self) -> float:
        """Length of a clip."""
        return self.sizing.seconds or self.configs[self.denoiser]['sample_size'] * self.factor / self.audio_rate

    @property
    def audio_channels(self) -> int:
        """Channels of a waveform."""
        return 1

    def latent_shape(self, size: Size) -> tuple[int, ...]:
        """Returns `(channels, frames, bins)`."""
        frames = math.ceil(int(size[0] / self.hop) / self.side_factor)
        return self.configs[self.denoiser]['in_channels'], frames, self.vocoder.model_in_dim // self.side_factor

    @torch.no_grad()
    def encode_media(self, pipeline: Any, fitted: Tensor) -> Tensor:
        """Returns the mode of the autoencoder's distribution of spectrograms, scaled, silence behind the clip."""
        vae = pipeline.vae
        length = self.latent_shape(self.default_size())[1] * self.factor
        waves = torch.nn.functional.pad(fitted[:, 0], (0, length - fitted.shape[-1]))
        mel = self.spectrogram(waves.to(vae.device))[:, None].to(vae.dtype)
        return vae.encode(mel).latent_dist.mode().float() * vae.config.scaling_factor

    @torch.no_grad()
    def decode_latents(self, pipeline: Any, latents: Tensor) -> list[Any]:
        """Returns clips."""
        vae = pipeline.vae
        mel = vae.decode(latents.to(vae.device, vae.dtype) / vae.config.scaling_factor).sample
        return self.as_clips(pipeline.mel_spectrogram_to_waveform(mel)[:, None])

    def spectrogram(self, waves: Tensor) -> Tensor:
        """Returns the logarithm of mel spectrograms of `(batch, samples)`, `(batch, frames, bins)`.

        As HiFi-GAN has them, which the vocoder is: magnitudes in windows that lie around their frames.
        """
        from transformers.audio_utils import mel_filter_bank

        size = 2 * round(self.hop * WINDOW / 2)
        before = (size - self.hop) // 2
        padded = torch.nn.functional.pad(waves[:, None], (before, size - self.hop - before), mode='reflect')[:, 0]
        window = torch.hann_window(size, device=waves.device)
        spectrum = torch.stft(padded, size, self.hop, window=window, center=False, return_complex=True).abs()
        filters = mel_filter_bank(
            num_frequency_bins=size // 2 + 1,
            num_mel_filters=self.vocoder.model_in_dim,
            min_frequency=0.0,
            max_frequency=self.audio_rate / 2,
            sampling_rate=self.audio_rate,
            norm='slaney',
            mel_scale='slaney',
        )
        bands = torch.as_tensor(filters, dtype=torch.float32, device=waves.device)
        return (spectrum.transpose(1, 2) @ bands).clamp(min=QUIETEST).log()
