"""A tiny pipeline that makes tones, tones to teach it, and what hears how high they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from align_anything.core.types import Audio
from align_anything.datasets.media.writing import wav
from align_anything.models.diffusion.library import quiet
from align_anything.testing.captioned import Captioned
from align_anything.testing.tiny.pipeline_parts import PipelineOptions, save_pipeline
from align_anything.testing.tiny.pipelines_audio import stable_audio

PITCHES = {'low': 100.0, 'middle': 200.0, 'high': 400.0, 'shrill': 600.0}
"""Words, and Hertz."""
RATE, FRAME, FRAMES = 1600, 16, 16
"""Samples a second, samples in a latent, and latents in a clip."""
SECONDS = FRAME * FRAMES / RATE
VOLUME, DETUNED = (0.3, 0.6), 0.02
GAIN = 3.0
"""What makes latents about as large as noise."""


def sound(pitch: str, random: np.random.Generator) -> Audio:
    """Returns a tone, somewhat out of tune, of some loudness and phase."""
    hertz = PITCHES[pitch] * (1 + random.uniform(-DETUNED, DETUNED))
    phase = 2 * np.pi * (hertz * np.arange(FRAME * FRAMES) / RATE + random.uniform())
    return Audio((random.uniform(*VOLUME) * np.sin(phase)).astype(np.float32), RATE)


def pitch_of(samples: np.ndarray, rate: int = RATE) -> str | None:
    """Returns how high a tone `(samples,)` is; None for what is none: most of its power is elsewhere than at a pitch.

    At a pitch is what is nearer to it than an eighth of it.
    """
    power = np.abs(np.fft.rfft(np.asarray(samples, dtype=np.float64) * np.hanning(len(samples)))) ** 2
    hertz = np.fft.rfftfreq(len(samples), 1 / rate)
    heard = {word: power[np.abs(hertz - pitch) < pitch / 8].sum() for word, pitch in PITCHES.items()}
    loudest = max(heard, key=heard.__getitem__)
    return loudest if heard[loudest] > power.sum() / 2 else None


def _file(pitch: str, random: np.random.Generator) -> bytes:
    return wav(sound(pitch, random))


TONES = Captioned('audio', tuple(PITCHES), 'a tone', 'a {} tone', '.wav', _file)
"""Tones, and prompts for them."""


def sounding_model(out: str | Path, *, hidden: int = 48, layers: int = 3, seed: int = 0) -> Path:
    """Writes an untrained pipeline of Stable Audio into `out`, whose autoencoder cuts sounds up and loses nothing.

    It makes clips of `SECONDS`.
    """
    options = PipelineOptions('stable_audio', hidden=hidden, layers=layers, seed=seed, corpus=TONES.corpus)
    save_pipeline({'stable_audio': _sounding}, options, Path(out))
    return Path(out)


def _sounding(options: PipelineOptions) -> Any:
    pipeline = stable_audio(options)
    config = {name: value for name, value in pipeline.transformer.config.items() if not name.startswith('_')}
    config |= {'sample_size': FRAMES, 'in_channels': FRAME, 'out_channels': FRAME}
    pipeline.register_modules(transformer=type(pipeline.transformer)(**config), vae=_cutting_autoencoder())
    return pipeline


def _cutting_autoencoder() -> Any:
    """Returns an autoencoder whose latents are `FRAME` samples each, one channel for every sample."""
    import diffusers

    vae = diffusers.AutoencoderOobleck(
        encoder_hidden_size=2 * FRAME,
        downsampling_ratios=[FRAME],
        decoder_channels=FRAME,
        decoder_input_channels=FRAME,
        audio_channels=1,
        channel_multiples=[1],
        sampling_rate=RATE,
    ).eval()
    for name, module in vae.named_modules():
        if 'snake' in name:
            # Its sine is that of next to nothing.
            nn.init.constant_(module.alpha, -40)
        elif 'conv' in name:
            _set(module, {})
    encoder, decoder = vae.encoder, vae.decoder
    each, middle = range(FRAME), FRAME // 2
    _set(encoder.conv1, {(0, 0, 3): GAIN})
    _set(encoder.block[0].conv1, {(at, 0, middle + at): 1.0 for at in each})
    _set(encoder.conv2, {(at, at, 1): 1.0 for at in each})
    _set(decoder.conv1, {(at, at, 3): 1.0 for at in each})
    _set(decoder.block[0].conv_t1, {(at, 0, middle + at): 1.0 for at in each})
    _set(decoder.conv2, {(0, 0, 3): 1 / GAIN})
    return vae


@torch.no_grad()
def _set(convolution: Any, entries: dict[tuple[int, int, int], float]) -> None:
    """Gives a convolution whose weights are normalised these weights, and zeros in all other places."""
    weight = torch.zeros_like(convolution.weight_v)
    for place, value in entries.items():
        weight[place] = value
    norm: Tensor = weight.flatten(1).norm(dim=1).view(-1, 1, 1)
    convolution.weight_g.copy_(norm)
    convolution.weight_v.copy_(torch.where(norm > 0, weight, 1.0))
    if convolution.bias is not None:
        convolution.bias.zero_()


def sample_tones(checkpoint: str | Path, prompts: Sequence[str], *, steps: int = 16, seed: int = 0) -> list[np.ndarray]:
    """Returns the tones `(samples,)` that a pipeline makes of prompts, by diffusers alone."""
    import diffusers

    with quiet():
        pipeline = diffusers.DiffusionPipeline.from_pretrained(str(checkpoint))
        pipeline.set_progress_bar_config(disable=True)
        made = pipeline(
            list(prompts),
            audio_end_in_s=SECONDS,
            num_inference_steps=steps,
            guidance_scale=1.0,
            generator=torch.Generator().manual_seed(seed),
            output_type='np',
        )
    return list(made.audios[:, 0])
