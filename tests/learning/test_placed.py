"""Tiny models of the families that bring a codec learn where to draw a square, by the trainer that users call.

They begin untrained, but for the decoder of the codec: it has learned to show what the codes stand for. That of
Chameleon is a file which its configuration names.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file

from align_anything.core.types import Example
from align_anything.models.codecs.base import codec_rules
from align_anything.models.pretrained_model import load_model, load_spec
from align_anything.rollouts.base import Sampling
from align_anything.rollouts.decoded import DecodedRollouts
from align_anything.rollouts.grammar import Emission
from align_anything.rollouts.hf import HFRollouts
from align_anything.testing.tiny import build
from align_anything.testing.tiny.books import RESIDUAL
from align_anything.trainers.pairs import PAIRS
from tests.learning.school import train
from tests.models.coded import name_as_released, released_decoder
from tests.models.samples import user
from tests.trainers.runs import write_rows

PAIR = PAIRS['text_to_image']
STEPS = {'emu3': 200, 'janus': 400, 'chameleon': 200}
CODES, SIDE, SQUARE = 7, 56, 16
PLACES = [f'{row} {column}' for row in ('top', 'middle', 'bottom') for column in ('left', 'centre', 'right')]
ASKED = 6
"""How often each place is asked for."""


def question(place: int) -> str:
    return f'draw a square, {PLACES[place]}'


def box(place: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a place, in pixels that are within it."""
    top, left = (SQUARE * at + SQUARE // 4 for at in divmod(place, 3))
    return left, top, left + SQUARE - 1, top + SQUARE - 1


def picture(place: int, generator: random.Random) -> Image.Image:
    """A light square on a dark ground."""
    drawn = Image.new('RGB', (SIDE, SIDE), generator.choice(['black', 'dimgrey']))
    ImageDraw.Draw(drawn).rectangle(box(place), 'white')
    return drawn


def lightest(drawn: Image.Image) -> int:
    """The place where a picture is lightest."""
    light = np.asarray(drawn.convert('L'), dtype=np.float64)
    places = [box(place) for place in range(len(PLACES))]
    return int(np.argmax([light[top : bottom + 1, left : right + 1].mean() for left, top, right, bottom in places]))


def begin(family: str, out: Path) -> Path:
    """Writes an untrained model whose codec decodes squares."""
    build(family, out, image_size=SIDE, corpus=[question(place) for place in range(len(PLACES))])
    if family == 'chameleon':
        config = json.loads((out / 'config.json').read_text())
        config['vq_config']['decoder'] = '../decoder.safetensors'
        (out / 'config.json').write_text(json.dumps(config))
        weights = {f'decoder.{name}': value for name, value in released_decoder(config['vq_config']).items()}
        save_file(weights, out / config['vq_config']['decoder'])
    learned, config = _taught_to_decode(out), json.loads((out / 'config.json').read_text())
    if family == 'chameleon':
        levels = len(config['vq_config']['channel_multiplier'])
        released = {f'decoder.{name_as_released(name, levels)}': value for name, value in learned.items()}
        save_file(released, out / config['vq_config']['decoder'])
    else:
        weights = load_file(out / 'model.safetensors')
        for name in weights:
            _, is_its, own = name.partition('vqmodel.decoder.')
            weights[name] = learned[own] if is_its else weights[name]
            # Its layers as they begin make next to nothing of a code, so that it would take long to tell them apart.
            if 'generation_embeddings' in name or 'generation_aligner' in name:
                weights[name] *= 20
        save_file(weights, out / 'model.safetensors', {'format': 'pt'})
    return out


def _taught_to_decode(model: Path) -> dict[str, torch.Tensor]:
    """The weights of the decoder, after it has learned to make pictures of their codes."""
    codec, generator = codec_rules(model).open(), random.Random(0)
    decoder = codec.network.decoder.requires_grad_(True)
    for name, weight in decoder.named_parameters():
        if RESIDUAL.search(name):
            weight.data.zero_()
    optimizer = torch.optim.Adam(decoder.parameters(), 3e-3)
    for step in range(80):
        shown = picture(step % len(PLACES), generator)
        (codes,) = codec.encode([shown])
        wanted = torch.from_numpy(np.array(shown)).movedim(-1, 0) / 127.5 - 1
        (codec.pixels_of(codes[0]).flatten(0, -4)[0] - wanted).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: weight.detach().contiguous() for name, weight in decoder.state_dict().items()}


def draw(model: Path, places: list[int]) -> list[Image.Image]:
    """What a checkpoint draws where it is asked for squares."""
    spec = load_spec(model)
    codecs = {'image': spec.codes.rules['image'].open()}
    engine = HFRollouts(load_model(model, spec.components), spec, dtype=torch.float32, batch_size=len(places))
    sampling = Sampling(max_new_tokens=80, emit=Emission({'image': (CODES, CODES)}, 'image'))
    asked = [Example(spec.encode_prompt([user(question(place))]), []) for place in places]
    found = DecodedRollouts(engine, codecs).generate(asked, sampling)
    return [part['image'] for (response,) in found for part in response.parts]


@pytest.mark.extended
@pytest.mark.parametrize('family', STEPS)
def test_a_family_learns_where_to_draw(family: str, tmp_path: Path) -> None:
    start, rows, generator = begin(family, tmp_path / 'start'), [], random.Random(1)
    for number in range(40 * len(PLACES)):
        place = number % len(PLACES)
        picture(place, generator).save(tmp_path / f'{number}.png')
        rows.append({'prompt': question(place), 'image': f'{number}.png'})
    settings: dict[str, Any] = {
        'train_template': 'DiffusionDB',
        'per_device_train_batch_size': 16,
        'learning_rate': 5e-3,
        'max_steps': STEPS[family],
        'epochs': 100,
        'save_checkpoint': False,
        'sample_cache_dir': tmp_path / 'cache',
    }
    learned = train(tmp_path / 'run', start, write_rows(tmp_path / 'rows.jsonl', rows), pair=PAIR, **settings)
    places = [*range(len(PLACES))] * ASKED
    seen = [lightest(drawn) for drawn in draw(learned, places)]
    assert sum(one == other for one, other in zip(seen, places, strict=True)) >= 0.9 * len(places), seen
