"""Where a ball moves is told, also behind the autoencoder of the pipeline that makes clips of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from align_anything.testing import moving

SHOWN = [direction for direction in moving.DIRECTIONS for _ in range(25)]


@pytest.fixture(scope='module')
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained pipeline."""
    return moving.filming_model(tmp_path_factory.mktemp('filming') / 'model')


def test_directions_are_told_also_behind_the_autoencoder(model: Path) -> None:
    import diffusers

    random = np.random.default_rng(0)
    clips = np.stack([moving.film(direction, random).frames for direction in SHOWN])
    assert [*map(moving.direction_of, clips)] == SHOWN
    vae = diffusers.AutoencoderKLLTXVideo.from_pretrained(model / 'vae')
    pixels = torch.from_numpy(clips).permute(0, 4, 1, 2, 3) / 127.5 - 1
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mode()
        decoded = vae.decode(latents).sample
    torch.testing.assert_close(decoded, pixels, atol=3e-3, rtol=0)
    scaled = (latents - vae.latents_mean[0]) / vae.latents_std[0]
    assert abs(float(scaled.mean())) < 0.2 and 0.8 < float(scaled.std()) < 1.2
    shown = ((decoded.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 4, 1).numpy()
    assert np.array_equal(shown, clips)


def test_backwards_a_ball_moves_the_other_way() -> None:
    clip = moving.film('left', np.random.default_rng(0)).frames
    assert moving.direction_of(clip[::-1]) == 'right'
    assert moving.direction_of(clip.transpose(0, 2, 1, 3)) == 'up'


def test_nothing_moves_in_darkness_in_what_stands_still_and_aslant() -> None:
    clip = moving.film('down', np.random.default_rng(0)).frames
    assert moving.direction_of(np.zeros_like(clip)) is None
    assert moving.direction_of(clip[:1].repeat(moving.FRAMES, 0)) is None
    aslant = np.full((2, 32, 32, 3), 40, np.uint8)
    aslant[0, 4:10, 4:10] = aslant[1, 20:26, 20:26] = 250
    assert moving.direction_of(aslant) is None


def test_what_is_made_hangs_on_the_seed_and_the_prompt(model: Path) -> None:
    def made(prompts: list[str], seed: int = 0) -> list[bytes]:
        return [clip.tobytes() for clip in moving.sample_clips(model, prompts, steps=2, seed=seed)]

    first = made(['a ball moves left', 'a ball moves'])
    assert first == made(['a ball moves left', 'a ball moves'])
    assert first[0] != made(['a ball moves left', 'a ball moves'], seed=1)[0]
    assert first[0] != made(['a ball moves right', 'a ball moves'])[0]
