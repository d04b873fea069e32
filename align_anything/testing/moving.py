"""A tiny pipeline that makes clips of a moving ball, clips to teach it, and what tells where a ball moves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from align_anything.core.types import Video
from align_anything.datasets.media.writing import animation
from align_anything.testing.tiny.pipeline_parts import PipelineOptions, save_pipeline
from align_anything.testing.tiny.pipelines_video import ltx

DIRECTIONS = {'left': (0, -1), 'right': (0, 1), 'up': (-1, 0), 'down': (1, 0)}
"""Words, and what they add to row and column."""
UNNAMED = 'a ball moves'
"""The prompt that does not say where to."""
FRAMES, CELLS, CELL = 5, 8, 4
SIDE = CELLS * CELL
"""Pixels of a side; a cell is a square of pixels of one brightness."""
RADIUS = 1.6
FPS = 25.0
BRIGHTNESS = 40, 250
"""Of the ground, and of the ball."""
MEAN, DEVIATION = -0.5, 0.5
"""Of the brightness of cells, -1 to 1, in clips that `film` makes: about."""


def named(direction: str) -> str:
    """Returns the prompt for a direction."""
    return f'{UNNAMED} {direction}'


def film(direction: str, random: np.random.Generator) -> Video:
    """Returns a clip of a bright ball that moves by a cell a frame, from somewhere."""
    steps = np.array(DIRECTIONS[direction])
    start = random.uniform(RADIUS - 0.5, CELLS - RADIUS - 0.5, size=2)
    way = FRAMES - 1
    along = int(np.abs(steps).argmax())
    slack = random.uniform(-0.5, 0.5)
    start[along] = (CELLS - 1) / 2 - steps[along] * way / 2 + slack
    rows, columns = np.mgrid[:CELLS, :CELLS]
    frames = []
    for number in range(FRAMES):
        row, column = start + steps * number
        covered = (RADIUS + 0.5 - np.hypot(rows - row, columns - column)).clip(0, 1)
        dark, bright = BRIGHTNESS
        cells = (dark + (bright - dark) * covered).round().astype(np.uint8)
        frames.append(np.kron(cells, np.ones((CELL, CELL), np.uint8))[..., None].repeat(3, -1))
    return Video(np.stack(frames), np.arange(FRAMES) / FPS, FPS)


def direction_of(frames: np.ndarray) -> str | None:
    """Returns where the ball of a clip `(frames, height, width, 3)` moves; None where nothing moves far enough.

    That is three cells or more one way, from the first frame to the last, and less than half as far across it.
    """
    lit = np.asarray(frames, dtype=np.float64).mean(-1)
    lit = (lit - np.median(lit) - 0.25 * (lit.max() - np.median(lit))).clip(min=0)
    centres = []
    for frame in (lit[0], lit[-1]):
        if not frame.any():
            return None
        rows, columns = np.indices(frame.shape)
        centres.append([(rows * frame).sum() / frame.sum(), (columns * frame).sum() / frame.sum()])
    moved = np.subtract(centres[1], centres[0]) / (frames.shape[1] / CELLS)
    far, across = np.abs(moved).max(), np.abs(moved).min()
    if far < 3 or across > far / 2:
        return None
    along = int(np.abs(moved).argmax())
    return next(word for word, steps in DIRECTIONS.items() if steps[along] == np.sign(moved[along]))


def filming_model(out: str | Path, *, hidden: int = 48, layers: int = 3, seed: int = 0) -> Path:
    """Writes an untrained pipeline of LTX-Video into `out`, whose autoencoder cuts clips into cells and loses nothing.

    It makes clips of `FRAMES` frames, `SIDE` pixels of a side.
    """
    corpus = [prompt for prompt in (UNNAMED, *map(named, DIRECTIONS)) for _ in range(4)]
    options = PipelineOptions('ltx', hidden=hidden, layers=layers, seed=seed, corpus=tuple(corpus))
    save_pipeline({'ltx': _filming}, options, Path(out))
    return Path(out)


def _filming(options: PipelineOptions) -> Any:
    pipeline = ltx(options)
    pipeline.register_modules(vae=_cutting_autoencoder())
    return pipeline


def _cutting_autoencoder() -> Any:
    """Returns an autoencoder with 2 x 2 cells of two frames in a latent, one channel each; of the first frame twice.

    Its normalisations divide by a constant, since a channel of a large constant goes through them, and the difference
    of SiLU of x and of -x is x.
    """
    import diffusers

    values, large = 8, 100.0
    width = 2 * values + 1
    # What is normalised is x, -x and the constant.
    scales = [large / total**0.5 for total in (width, width)]
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=values,
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
        patch_size=CELL,
    ).eval()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.zero_()
        encoder, decoder = vae.encoder, vae.decoder
        (down,), (up,) = encoder.down_blocks[0].downsamplers, decoder.up_blocks[0].upsamplers
        # Kernels of 3 x 3 x 3: their centre, and of what is cut the later of three frames, and of three cells.
        encoder.conv_in.conv.weight[0, :, 2, 1, 1] = 1 / encoder.in_channels
        for value, (time, row, column) in enumerate(np.ndindex(2, 2, 2)):
            for channel, sign in ((value, 1.0), (values + value, -1.0)):
                down.conv.weight[channel, 0, 1 + time, 1 + row, 1 + column] = sign
            encoder.conv_out.conv.weight[value, [value, values + value], 2, 1, 1] = scales[0] * torch.tensor([1.0, -1])
            decoder.conv_in.conv.weight[value, value, 1, 1, 1] = 1.0
            for channel, sign in ((0, 1.0), (1, -1.0)):
                up.conv.conv.weight[channel * values + value, value, 1, 1, 1] = sign
        down.conv.bias[-1] = large
        up.conv.conv.bias[-values:] = large
        decoder.conv_out.conv.weight[:, [0, 1], 1, 1, 1] = scales[1] * torch.tensor([1.0, -1])
    vae.latents_mean.fill_(MEAN)
    vae.latents_std.fill_(DEVIATION)
    return vae


def write_clip_rows(folder: str | Path, rows: int = 32, *, unnamed: float = 0.5, seed: int = 0) -> Path:
    """Writes clips and `rows.jsonl` with the prompts that ask for them; returns that file.

    All directions come equally often, and so large a share as `unnamed` of the prompts does not say which. Rows have a
    `prompt`, a `video`, its `direction`, and another one's clip as `rejected`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    random, words = np.random.default_rng(seed), list(DIRECTIONS)
    lines = []
    for number in range(rows):
        direction = words[number % len(words)]
        other = random.choice([word for word in words if word != direction])
        for name, word in ((f'{number}.apng', direction), (f'{number}-other.apng', other)):
            (folder / name).write_bytes(animation(film(word, random)))
        lines.append(
            {
                'prompt': UNNAMED if random.random() < unnamed else named(direction),
                'video': f'{number}.apng',
                'rejected': f'{number}-other.apng',
                'direction': direction,
            }
        )
    file = folder / 'rows.jsonl'
    file.write_text(''.join(json.dumps(line) + '\n' for line in lines), encoding='utf-8')
    return file


def sample_clips(checkpoint: str | Path, prompts: Sequence[str], *, steps: int = 10, seed: int = 0) -> list[np.ndarray]:
    """Returns the clips `(frames, height, width, 3)` uint8 that a pipeline makes of prompts, by diffusers alone."""
    import diffusers

    pipeline = diffusers.DiffusionPipeline.from_pretrained(checkpoint)
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(
        list(prompts),
        height=SIDE,
        width=SIDE,
        num_frames=FRAMES,
        num_inference_steps=steps,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(seed),
        output_type='np',
    )
    return [(clip * 255).round().astype(np.uint8) for clip in made.frames]
