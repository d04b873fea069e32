"""How high a tone is, is heard, also behind the autoencoder of the pipeline that makes tones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from align_anything.testing import tones

PLAYED = [pitch for pitch in tones.PITCHES for _ in range(25)]


@pytest.fixture(scope='module')
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained pipeline."""
    return tones.sounding_model(tmp_path_factory.mktemp('sounding') / 'model')


def test_pitches_are_heard_also_behind_the_autoencoder(model: Path) -> None:
    import diffusers

    random = np.random.default_rng(0)
    samples = np.stack([tones.sound(pitch, random).samples for pitch in PLAYED])
    assert [*map(tones.pitch_of, samples)] == PLAYED
    vae = diffusers.AutoencoderOobleck.from_pretrained(model / 'vae')
    with torch.no_grad():
        latents = vae.encode(torch.from_numpy(samples)[:, None]).latent_dist.mode()
        decoded = vae.decode(latents).sample[:, 0]
    assert abs(float(latents.mean())) < 0.1 and 0.8 < float(latents.std()) < 1.2
    torch.testing.assert_close(decoded, torch.from_numpy(samples), atol=1e-5, rtol=0)


def test_nothing_is_heard_in_noise_in_silence_and_between_pitches() -> None:
    random, length = np.random.default_rng(0), tones.FRAME * tones.FRAMES
    assert [tones.pitch_of(random.normal(size=length)) for _ in range(50)] == [None] * 50
    assert tones.pitch_of(np.zeros(length)) is None
    assert tones.pitch_of(np.sin(2 * np.pi * 300 * np.arange(length) / tones.RATE)) is None


def test_what_is_made_hangs_on_the_seed_and_the_prompt(model: Path) -> None:
    def made(prompts: list[str], seed: int = 0) -> list[bytes]:
        return [samples.tobytes() for samples in tones.sample_tones(model, prompts, steps=2, seed=seed)]

    first = made(['a low tone', 'a tone'])
    assert first == made(['a low tone', 'a tone'])
    assert first[0] != made(['a low tone', 'a tone'], seed=1)[0]
    assert first[0] != made(['a high tone', 'a tone'])[0]
