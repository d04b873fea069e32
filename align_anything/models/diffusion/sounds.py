"""What families that make sounds share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from align_anything.core.errors import ModelError, SampleError
from align_anything.core.types import Audio, MediaKind
from align_anything.models.diffusion.prepared import Size
from align_anything.models.diffusion.spec import DiffusionSpec


class SoundSpec(DiffusionSpec):
    """A family that makes sounds.

    All clips have the length of the settings: longer ones are cut at the end, shorter ones end in silence. They are
    mono in rows, so that a stereo model hears the same on both sides, and what it makes is mixed down.
    """

    emits: ClassVar[frozenset[MediaKind]] = frozenset({'audio'})

    @property
    def audio_rate(self) -> int:
        """Samples per second."""
        raise NotImplementedError

    @property
    def audio_channels(self) -> int:
        """Channels of a waveform."""
        raise NotImplementedError

    @property
    def factor(self) -> int:
        """Samples for one latent."""
        raise NotImplementedError

    @property
    def seconds(self) -> float:
        """Length of a clip."""
        raise NotImplementedError

    def check(self) -> None:
        """Raises ModelError for a clip shorter than a latent."""
        if self.default_size()[0] < self.factor:
            raise ModelError(
                f'seconds {self.seconds} for {self.model_type}: one latent takes {self.factor / self.audio_rate:.3f}.'
            )

    def default_size(self) -> Size:
        """Returns the length of the settings, else that of the checkpoint, `(samples,)`."""
        return (int(self.seconds * self.audio_rate),)

    def size_of(self, medium: Any) -> Size:
        """Returns the length that all clips have."""
        return self.default_size()

    def fitted(self, medium: Any, size: Size) -> Tensor:
        """Returns a clip as `(channels, samples)`. Raises SampleError for one of another rate."""
        if medium.rate != self.audio_rate:
            raise SampleError(
                f'the audio has {medium.rate} samples a second, this model takes {self.audio_rate}: resample it'
            )
        samples = torch.as_tensor(medium.samples, dtype=torch.float32)[: size[0]]
        samples = torch.nn.functional.pad(samples, (0, size[0] - len(samples)))
        return samples.expand(self.audio_channels, -1)

    def as_clips(self, waves: Tensor) -> list[Audio]:
        """Returns waveforms `(batch, channels, samples)` as clips of the length of the settings."""
        mixed = waves.float().mean(1)[:, : self.default_size()[0]].clamp(-1, 1).cpu().numpy()
        return [Audio(samples, self.audio_rate) for samples in mixed]


class WaveformSpec(SoundSpec):
    """A family over an `AutoencoderOobleck`."""

    one_size = 'all clips of a run are equally long.'

    @property
    def audio_rate(self) -> int:
        """Samples per second."""
        return self.configs['vae']['sampling_rate']

    @property
    def audio_channels(self) -> int:
        """Channels of a waveform."""
        return self.configs['vae']['audio_channels']

    @property
    def factor(self) -> int:
        """Samples for one latent."""
        return math.prod(self.configs['vae']['downsampling_ratios'])

    @torch.no_grad()
    def encoded(self, pipeline: Any, fitted: Tensor, length: int) -> Tensor:
        """Returns the mode of the autoencoder's distribution, `(batch, channels, length)`, silence behind the clip."""
        vae = pipeline.vae
        padded = torch.nn.functional.pad(fitted, (0, length * self.factor - fitted.shape[-1]))
        return vae.encode(padded.to(vae.device, vae.dtype)).latent_dist.mode().float()

    def tokens(self, shape: Sequence[int]) -> int:
        """Returns how many latents there are, one after the other."""
        return math.prod(shape)
