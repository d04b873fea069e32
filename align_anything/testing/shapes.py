"""Coloured shapes, a small pipeline that can learn to paint them, and what tells what a picture shows.

A picture has one shape on a dark ground, 16 x 16 pixels. Captions name its colour and shape, or the shape alone, so
that a model learns colours that prompts ask for, and has some of its own choice where they ask for none.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from align_anything.models.diffusion.library import quiet
from align_anything.testing.tiny.pipeline_parts import PipelineOptions, save_pipeline
from align_anything.testing.tiny.pipelines_image import SHIFTED_VAE, flux_kontext, sd3_clip

SIDE = 16
COLOURS = {'red': (240, 30, 30), 'green': (30, 220, 40), 'blue': (40, 60, 250), 'yellow': (240, 220, 30)}
SHAPES = ('circle', 'square', 'bar')
GROUND = 20
"""Of 255, of each colour."""
WORDS = 6
"""Tokens of the longest prompt; also what a pipeline that is sampled is given as `max_sequence_length`."""
NAMED = tuple(f'a {colour} {shape}' for shape, colour in product(SHAPES, COLOURS))
PLAIN = tuple(f'a {shape}' for shape in SHAPES)
EDITS = tuple(f'make it {colour}' for colour in COLOURS)
"""All prompts, with a colour and without, and those of edits."""
LIT = 80
"""Of 255: what a pixel is brighter than the ground by at least, in its brightest channel, to be of a shape."""
FEWEST = 6
"""Pixels that a shape has at least."""
LIKENESS = 0.75
"""Correlation of a picture with the nearest shape from which on it shows one."""
CARRIER = 100.0
"""How large the constant channels of the autoencoder are."""
MEAN, DEVIATION = 0.2, 0.42
"""Of the latents."""
LOG_VARIANCE = -12.0


def draw_shape(colour: str, shape: str, random: np.random.Generator) -> Image.Image:
    """Returns a picture of a shape of some size at some place."""
    middle, size = SIDE / 2 + random.uniform(-2.5, 2.5, 2), random.uniform(4.0, 5.5)
    share = _mask(shape, *middle, size)[..., None]
    pixels = share * np.array(COLOURS[colour]) + (1 - share) * GROUND
    return Image.fromarray(pixels.round().astype(np.uint8))


def colour_of(picture: Image.Image) -> str | None:
    """Returns the colour whose hue is nearest to the mean of the lit pixels; None where there are too few of them."""
    pixels = _pixels(picture)
    lit = pixels.max(-1) >= LIT
    if lit.sum() < FEWEST:
        return None
    mean = pixels[lit].mean(0)
    hues = np.array([*COLOURS.values()], dtype=np.float64) - GROUND
    likeness = hues @ mean / np.linalg.norm(hues, axis=1)
    return [*COLOURS][int(likeness.argmax())]


def shape_of(picture: Image.Image) -> str | None:
    """Returns the shape that a picture looks most like, at its best size and place; None where it looks like none."""
    names, masks = _templates()
    light = _pixels(picture).max(-1).reshape(-1)
    light = light - light.mean()
    likeness = masks @ light / max(float(np.linalg.norm(light)), 1.0)
    best = int(likeness.argmax())
    return names[best] if likeness[best] >= LIKENESS else None


def write_shapes(folder: str | Path, count: int, *, plain: float = 0.5, shuffled: bool = False, seed: int = 0) -> Path:
    """Writes pictures and `metadata.jsonl` with captions, `file_name` and `text`; returns that folder.

    So large a share as `plain` of the captions names no colour. With `shuffled` each picture has the caption of some
    other one. Rows also say the `colour` and the `shape` of the picture.
    """
    random, folder = np.random.default_rng(seed), _made(folder)
    rows = []
    for number in range(count):
        colour, shape = random.choice([*COLOURS]), random.choice(SHAPES)
        draw_shape(colour, shape, random).save(folder / f'{number}.png')
        text = f'a {shape}' if random.random() < plain else f'a {colour} {shape}'
        rows.append({'file_name': f'{number}.png', 'text': text, 'colour': colour, 'shape': shape})
    if shuffled:
        texts = [row['text'] for row in rows]
        for row, other in zip(rows, random.permutation(count), strict=True):
            row['text'] = texts[other]
    _write(folder / 'metadata.jsonl', rows)
    return folder


def write_shape_pairs(
    folder: str | Path, count: int, *, preferred: Sequence[str] = ('red',), named: bool = False, seed: int = 0
) -> Path:
    """Writes pairs of pictures and `pairs.jsonl`, and returns that file: `prompt`, `chosen` and `rejected`.

    Prompts name a shape alone. What is chosen shows it in a preferred colour, what is rejected in another one. With
    `named` every second prompt names a colour, and what is chosen has that.
    """
    random, folder = np.random.default_rng(seed), _made(folder)
    rows = []
    for number in range(count):
        shape, wanted = random.choice(SHAPES), preferred
        row = {'prompt': f'a {shape}'}
        if named and number % 2:
            wanted = [random.choice([*COLOURS])]
            row['prompt'] = f'a {wanted[0]} {shape}'
        others = [colour for colour in COLOURS if colour not in wanted]
        for name, colour in (('chosen', random.choice(wanted)), ('rejected', random.choice(others))):
            row[name] = f'{number}-{name}.png'
            draw_shape(colour, shape, random).save(folder / row[name])
        rows.append(row)
    return _write(folder / 'pairs.jsonl', rows)


def write_shape_edits(folder: str | Path, count: int, *, shuffled: bool = False, seed: int = 0) -> Path:
    """Writes edits and `edits.jsonl`, and returns that file: `edit_prompt`, `input_image` and `edited_image`.

    What is edited is the colour: the shape stays as large and where it is. With `shuffled` each edit has the image of
    some other one. Rows also say the `colour` and the `shape` of what comes of it.
    """
    random, folder = np.random.default_rng(seed), _made(folder)
    rows = []
    for number in range(count):
        (before, after), shape = random.choice([*COLOURS], 2, replace=False), random.choice(SHAPES)
        place = random.integers(2**32)
        names = f'{number}-from.png', f'{number}-to.png'
        for name, colour in zip(names, (before, after), strict=True):
            draw_shape(colour, shape, np.random.default_rng(place)).save(folder / name)
        shown = {'input_image': names[0], 'edited_image': names[1]}
        rows.append({'edit_prompt': f'make it {after}', **shown, 'colour': after, 'shape': shape})
    if shuffled:
        images = [row['input_image'] for row in rows]
        for row, other in zip(rows, random.permutation(count), strict=True):
            row['input_image'] = images[other]
    return _write(folder / 'edits.jsonl', rows)


def build_painter(out: str | Path, *, hidden: int = 48, layers: int = 3, seed: int = 0) -> Path:
    """Writes an untrained pipeline of the form of Stable Diffusion 3 for such pictures into `out`, and returns it.

    Its text encoders have random weights and no T5. Its autoencoder is made by hand: latents are the colours and the
    brightness of each square of four pixels.
    """
    options = PipelineOptions(
        'sd3_clip', hidden, layers, image_size=SIDE, factor=2, positions=WORDS, seed=seed, corpus=(*NAMED, *PLAIN)
    )
    save_pipeline({'sd3_clip': _pipeline}, options, Path(out))
    return Path(out)


def build_editor(out: str | Path, *, hidden: int = 48, layers: int = 1, seed: int = 0) -> Path:
    """Writes an untrained pipeline of the form of FLUX.1 Kontext for such edits into `out`, and returns it.

    Its autoencoder is that of `build_painter`, its text encoders have random weights.
    """
    options = PipelineOptions(
        'flux_kontext', hidden, layers, image_size=SIDE, factor=2, positions=WORDS, seed=seed, corpus=EDITS
    )
    save_pipeline({'flux_kontext': _editor}, options, Path(out))
    return Path(out)


def paint(
    checkpoint: str | Path,
    prompts: Sequence[str],
    *,
    adapter: str | Path | None = None,
    steps: int = 10,
    guidance: float = 1.0,
    seed: int = 0,
) -> list[Image.Image]:
    """Returns a picture for each prompt, by diffusers alone; `adapter` is a folder that `load_lora_weights` reads."""
    pipeline = open_painter(checkpoint)
    with quiet():
        if adapter is not None:
            pipeline.load_lora_weights(adapter)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline(
            list(prompts),
            num_inference_steps=steps,
            guidance_scale=guidance,
            max_sequence_length=WORDS,
            generator=torch.Generator().manual_seed(seed),
        ).images


def open_painter(checkpoint: str | Path) -> Any:
    """Returns the pipeline of a painter as diffusers loads it."""
    import diffusers

    with quiet():
        return diffusers.DiffusionPipeline.from_pretrained(checkpoint, text_encoder_3=None, tokenizer_3=None)


def _made(folder: str | Path) -> Path:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write(file: Path, rows: Sequence[dict[str, Any]]) -> Path:
    file.write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
    return file


def _pixels(picture: Image.Image) -> np.ndarray:
    """How much brighter than the ground each pixel is, `(side, side, 3)`."""
    return np.asarray(picture.convert('RGB'), dtype=np.float64) - GROUND


def _mask(shape: str, across: float, down: float, size: float) -> np.ndarray:
    """How much of each pixel a shape covers, `(side, side)`."""
    at = np.arange(SIDE) + 0.5
    x, y = np.abs(at - across)[None], np.abs(at - down)[:, None]
    if shape == 'circle':
        distance = np.hypot(x, y) - size
    elif shape == 'square':
        distance = np.maximum(x, y) - 0.88 * size
    else:
        distance = np.maximum(x - 1.3 * size, y - 0.4 * size)
    return (0.5 - distance).clip(0, 1)


@cache
def _templates() -> tuple[list[str], np.ndarray]:
    """Names and centred masks, `(templates, pixels)`, of shapes of all sizes at all places."""
    places, sizes = np.linspace(-2.5, 2.5, 6) + SIDE / 2, np.linspace(4.0, 5.5, 4)
    kinds = [*product(SHAPES, places, places, sizes)]
    masks = np.stack([_mask(*kind).reshape(-1) for kind in kinds])
    masks -= masks.mean(1, keepdims=True)
    return [kind[0] for kind in kinds], masks / np.linalg.norm(masks, axis=1, keepdims=True)


def _pipeline(options: PipelineOptions) -> Any:
    import diffusers

    pipeline = sd3_clip(options)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
    pipeline.register_modules(vae=_averaging_autoencoder(), scheduler=scheduler)
    return pipeline


def _editor(options: PipelineOptions) -> Any:
    import diffusers

    pipeline = flux_kontext(options)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
    pipeline.register_modules(vae=_averaging_autoencoder(), scheduler=scheduler)
    return pipeline


@torch.no_grad()
def _averaging_autoencoder() -> Any:
    """Returns an `AutoencoderKL` that averages squares of four pixels, and interpolates between them.

    Its group normalisations would undo brightness: two constant channels, far larger than all others, keep what they
    divide by the same for all pictures. A channel and its negative pass a SiLU whole: silu(x) - silu(-x) = x.
    """
    import diffusers

    count, ground = 4, GROUND / 127.5 - 1
    mean_of_colours = torch.cat([torch.eye(3), torch.full((1, 3), 1 / 3)])
    both = torch.cat([torch.eye(count), -torch.eye(count), torch.zeros(2, count)])
    vae = diffusers.AutoencoderKL(
        down_block_types=('DownEncoderBlock2D',) * 2,
        up_block_types=('UpDecoderBlock2D',) * 2,
        block_out_channels=(len(both),) * 2,
        layers_per_block=1,
        latent_channels=count,
        norm_num_groups=1,
        sample_size=SIDE,
        shift_factor=MEAN,
        scaling_factor=1 / DEVIATION,
        **SHIFTED_VAE,
    ).eval()
    # What is left at zero passes its input on.
    for parameter in vae.parameters():
        parameter.zero_()
    for part in (vae.encoder, vae.decoder):
        part.conv_in.bias[2 * count :] = torch.tensor([CARRIER, -CARRIER])
        part.conv_norm_out.weight.fill_(CARRIER * (2 / len(both)) ** 0.5)
    vae.encoder.conv_in.weight[..., 1, 1] = both @ mean_of_colours
    vae.encoder.conv_in.bias[: 2 * count] = both[: 2 * count].sum(1) * -ground
    vae.encoder.down_blocks[0].downsamplers[0].conv.weight[..., :2, :2] = torch.eye(len(both))[..., None, None] / 4
    vae.encoder.conv_out.weight[:count, :, 1, 1] = both.T
    vae.encoder.conv_out.bias[count:] = LOG_VARIANCE
    vae.decoder.conv_in.weight[..., 1, 1] = both
    between = torch.tensor([0.25, 0.5, 0.25])
    smooth = vae.decoder.up_blocks[0].upsamplers[0].conv.weight
    smooth[...] = torch.eye(len(both))[..., None, None] * between[:, None] * between
    smooth[2 * count :] = 0
    smooth[2 * count :, 2 * count :, 1, 1] = torch.eye(2)
    # Half of the colours' brightness is that of the fourth latent.
    brightened = torch.cat([torch.eye(3) - 1 / 6, torch.full((3, 1), 0.5)], dim=1)
    vae.decoder.conv_out.weight[..., 1, 1] = brightened @ both.T
    vae.decoder.conv_out.bias.fill_(ground)
    return vae
