"""A tiny pipeline that makes clips of a moving ball, clips to teach it, and what tells where a ball moves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from align_anything.core.types import Video
from align_anything.datasets.media.writing import animation
from align_anything.models.diffusion.library import quiet
from align_anything.testing.captioned import Captioned
from align_anything.testing.tiny.pipeline_parts import PipelineOptions, save_pipeline
from align_anything.testing.tiny.pipelines_video import ltx

DIRECTIONS = {'left': (0, -1), 'right': (0, 1), 'up': (-1, 0), 'down': (1, 0)}
"""Words, and what they add to row and column."""
FRAMES, CELLS, CELL = 5, 4, 8
SIDE = CELLS * CELL
"""Pixels of a side; a cell is a square of pixels of one brightness."""
PATCH = CELLS // 2
LATENT = 8 * PATCH**2
"""Channels of a latent, which holds all cells of two frames."""
CARRIER = 100.0
"""How large the constant channel of the autoencoder is."""
WORDS = 5
"""Tokens of the longest prompt, its end included; also what a pipeline is given as `max_sequence_length`."""
RADIUS, SPEED, ASIDE = 0.8, 0.5, 0.4
"""Of the ball in cells, how many of them it moves from one frame to the next, and how far off the middle at most."""
FPS = 25.0
GROUND, BALL = (20, 140), 250
"""Brightness of the ground in the first frame and in the last, and of the ball.

A ground that brightens tells a model the order of the frames. Positions as close as those of so few frames hardly do:
without it, left and right are mistaken for each other.
"""
MEAN, DEVIATION = -0.25, 0.5
"""Of the brightness of cells, -1 to 1, in clips that `film` makes: about."""


def film(direction: str, random: np.random.Generator) -> Video:
    """Returns a clip of a bright ball that moves evenly over the middle, more or less."""
    steps = SPEED * np.array(DIRECTIONS[direction])
    start = (CELLS - 1) / 2 - steps * (FRAMES - 1) / 2 + random.uniform(-ASIDE, ASIDE, 2)
    rows, columns = np.mgrid[:CELLS, :CELLS]
    frames = []
    for number in range(FRAMES):
        row, column = start + steps * number
        covered = (RADIUS + 0.5 - np.hypot(rows - row, columns - column)).clip(0, 1)
        ground = np.interp(number, (0, FRAMES - 1), GROUND)
        cells = (ground + (BALL - ground) * covered).round().astype(np.uint8)
        frames.append(np.kron(cells, np.ones((CELL, CELL), np.uint8))[..., None].repeat(3, -1))
    return Video(np.stack(frames), np.arange(FRAMES) / FPS, FPS)


def direction_of(frames: np.ndarray) -> str | None:
    """Returns where the ball of a clip `(frames, height, width, 3)` moves; None where nothing moves far enough.

    That is a quarter of a side or more one way, from the first frame to the last, and less than half as far across it.
    """
    lit = np.asarray(frames, dtype=np.float64).mean(-1)
    rows, columns = np.indices(lit.shape[1:])
    centres = []
    for frame in (lit[0], lit[-1]):
        ground, highest = np.median(frame), frame.max()
        ball = (frame - ground - (highest - ground) / 4).clip(min=0)
        if highest == ground:
            return None
        centres.append([(rows * ball).sum() / ball.sum(), (columns * ball).sum() / ball.sum()])
    moved = np.subtract(centres[1], centres[0]) / lit.shape[1]
    far, across = np.abs(moved).max(), np.abs(moved).min()
    if far < 1 / 4 or across > far / 2:
        return None
    along = int(np.abs(moved).argmax())
    return next(word for word, steps in DIRECTIONS.items() if steps[along] == np.sign(moved[along]))


def _file(direction: str, random: np.random.Generator) -> bytes:
    return animation(film(direction, random))


CLIPS = Captioned('video', tuple(DIRECTIONS), 'a ball moves', 'a ball moves {}', '.apng', _file)
"""Clips of balls, and prompts for them."""


def filming_model(out: str | Path, *, hidden: int = 48, layers: int = 3, seed: int = 0) -> Path:
    """Writes an untrained pipeline of LTX-Video into `out`, whose autoencoder cuts clips into cells and loses nothing.

    It makes clips of `FRAMES` frames, `SIDE` pixels of a side.
    """
    options = PipelineOptions('ltx', hidden=hidden, layers=layers, seed=seed, corpus=CLIPS.corpus)
    save_pipeline({'ltx': _filming}, options, Path(out))
    return Path(out)


def _filming(options: PipelineOptions) -> Any:
    pipeline = ltx(options)
    config = {name: value for name, value in pipeline.transformer.config.items() if not name.startswith('_')}
    config |= {'in_channels': LATENT, 'out_channels': LATENT}
    pipeline.register_modules(transformer=type(pipeline.transformer)(**config), vae=_cutting_autoencoder())
    return pipeline


@torch.no_grad()
def _cutting_autoencoder() -> Any:
    """Returns an autoencoder whose latents are the cells of two frames, one channel each; of the first frame twice.

    Its normalisations divide by a constant, since a channel of a large constant goes through them, and the difference
    of SiLU of x and of -x is x.
    """
    import diffusers

    # What is normalised is x, -x and the constant.
    width = 2 * LATENT + 1
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=LATENT,
        block_out_channels=(width,),
        decoder_block_out_channels=(width,),
        layers_per_block=(0, 0),
        decoder_layers_per_block=(0, 0),
        spatio_temporal_scaling=(True,),
        decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False),
        down_block_types=('LTXVideoDownBlock3D',),
        upsample_residual=(False,),
        upsample_factor=(1,),
        patch_size=PATCH * CELL,
    ).eval()
    for parameter in vae.parameters():
        parameter.zero_()
    (down,), (up,) = vae.encoder.down_blocks[0].downsamplers, vae.decoder.up_blocks[0].upsamplers
    # Which pixels of a patch, column by column, are of a cell.
    cells = torch.eye(PATCH**2).view(PATCH**2, 1, PATCH, PATCH).expand(-1, 3, -1, -1)
    cells = cells.repeat_interleave(CELL, 2).repeat_interleave(CELL, 3).flatten(1)
    vae.encoder.conv_in.conv.weight[: len(cells), :, 2, 1, 1] = cells / cells.sum(1, keepdim=True)
    vae.decoder.conv_out.conv.weight[:, : 2 * len(cells), 1, 1, 1] = torch.cat([cells, -cells]).T
    for latent, (cell, time, row, column) in enumerate(np.ndindex(len(cells), 2, 2, 2)):
        # Of kernels of 3 x 3 x 3 the last two frames and cells, which are those that no other latent has.
        for channel, upper, sign in ((latent, latent, 1.0), (LATENT + latent, 8 * len(cells) + latent, -1.0)):
            down.conv.weight[channel, cell, 1 + time, 1 + row, 1 + column] = sign
            vae.encoder.conv_out.conv.weight[latent, channel, 2, 1, 1] = sign
            up.conv.conv.weight[upper, latent, 1, 1, 1] = sign
        vae.decoder.conv_in.conv.weight[latent, latent, 1, 1, 1] = 1.0
    down.conv.bias[-1] = CARRIER
    up.conv.conv.bias[-8:] = CARRIER
    for last in (vae.encoder.conv_out, vae.decoder.conv_out):
        last.conv.weight *= CARRIER / width**0.5
    vae.latents_mean.fill_(MEAN)
    vae.latents_std.fill_(DEVIATION)
    return vae


def sample_clips(checkpoint: str | Path, prompts: Sequence[str], *, steps: int = 10, seed: int = 0) -> list[np.ndarray]:
    """Returns the clips `(frames, height, width, 3)` uint8 that a pipeline makes of prompts, by diffusers alone."""
    import diffusers

    with quiet():
        pipeline = diffusers.DiffusionPipeline.from_pretrained(str(checkpoint))
        pipeline.set_progress_bar_config(disable=True)
        made = pipeline(
            list(prompts),
            height=SIDE,
            width=SIDE,
            num_frames=FRAMES,
            num_inference_steps=steps,
            guidance_scale=1.0,
            max_sequence_length=WORDS,
            generator=torch.Generator().manual_seed(seed),
            output_type='np',
        )
    return [(clip * 255).round().astype(np.uint8) for clip in made.frames]
