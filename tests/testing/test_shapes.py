"""Coloured shapes are told apart, also behind the autoencoder of the painter, whose latents are averages."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from align_anything.testing import shapes
from tests.trainers.runs import lines

KINDS = [(colour, shape) for colour in shapes.COLOURS for shape in shapes.SHAPES for _ in range(25)]


@pytest.fixture(scope='module')
def painter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained painter."""
    return shapes.build_painter(tmp_path_factory.mktemp('painter') / 'model')


@pytest.fixture(scope='module')
def pictures() -> list[Image.Image]:
    """A picture for each of `KINDS`."""
    random = np.random.default_rng(0)
    return [shapes.draw_shape(*kind, random) for kind in KINDS]


def right(pictures: list[Image.Image]) -> tuple[float, float]:
    """The share of pictures of `KINDS` whose colour, and whose shape, is told."""
    colours = [shapes.colour_of(picture) == colour for picture, (colour, _) in zip(pictures, KINDS, strict=True)]
    forms = [shapes.shape_of(picture) == shape for picture, (_, shape) in zip(pictures, KINDS, strict=True)]
    return sum(colours) / len(KINDS), sum(forms) / len(KINDS)


def test_colours_and_shapes_are_told_also_behind_the_autoencoder(painter: Path, pictures: list[Image.Image]) -> None:
    assert right(pictures) == (1, 1)
    vae = shapes.open_painter(painter).vae
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mode()
        seen = vae.decode(latents).sample
    averages = torch.nn.functional.avg_pool2d(pixels - (shapes.GROUND / 127.5 - 1), 2)
    torch.testing.assert_close(latents, torch.cat([averages, averages.mean(1, keepdim=True)], 1), atol=1e-3, rtol=0)
    decoded = ((seen.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    colours, forms = right([Image.fromarray(picture) for picture in decoded])
    assert colours == 1 and forms >= 0.97


def test_nothing_is_seen_in_noise_and_in_darkness() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (50, shapes.SIDE, shapes.SIDE, 3), dtype=np.uint8)
    assert [shapes.shape_of(Image.fromarray(picture)) for picture in noise] == [None] * 50
    dark = Image.new('RGB', (shapes.SIDE, shapes.SIDE), (shapes.GROUND,) * 3)
    assert shapes.colour_of(dark) is None and shapes.shape_of(dark) is None


def test_rows_name_what_their_pictures_show_unless_they_are_shuffled(tmp_path: Path) -> None:
    def named(folder: Path) -> list[bool]:
        found = []
        for row in lines(folder / 'metadata.jsonl'):
            with Image.open(folder / row['file_name']) as picture:
                assert (shapes.colour_of(picture), shapes.shape_of(picture)) == (row['colour'], row['shape'])
            found.append(row['text'] in (f'a {row["shape"]}', f'a {row["colour"]} {row["shape"]}'))
        return found

    assert named(shapes.write_shapes(tmp_path / 'rows', 60)) == [True] * 60
    assert sum(named(shapes.write_shapes(tmp_path / 'shuffled', 60, shuffled=True))) < 30
    plain = shapes.write_shapes(tmp_path / 'plain', 20, plain=1.0)
    assert {row['text'] for row in lines(plain / 'metadata.jsonl')} <= {*shapes.PLAIN}


def test_pairs_differ_in_their_colours(tmp_path: Path) -> None:
    file = shapes.write_shape_pairs(tmp_path, 40, preferred=['blue'])
    for row in map(json.loads, file.read_text().splitlines()):
        colours = []
        for name in ('chosen', 'rejected'):
            with Image.open(tmp_path / row[name]) as picture:
                assert f'a {shapes.shape_of(picture)}' == row['prompt']
                colours.append(shapes.colour_of(picture))
        assert colours[0] == 'blue' != colours[1]


def test_every_second_pair_may_ask_for_a_colour(tmp_path: Path) -> None:
    file = shapes.write_shape_pairs(tmp_path, 40, preferred=['blue'], named=True)
    for number, row in enumerate(map(json.loads, file.read_text().splitlines())):
        with Image.open(tmp_path / row['chosen']) as better, Image.open(tmp_path / row['rejected']) as worse:
            wanted, other = shapes.colour_of(better), shapes.colour_of(worse)
        assert (row['prompt'].split()[1:-1] or ['blue']) == [wanted] != [other]
        assert len(row['prompt'].split()) == 2 + number % 2


def test_what_is_painted_hangs_on_the_seed_and_the_prompt(painter: Path) -> None:
    def bytes_of(prompts: list[str], **how: int) -> list[bytes]:
        return [picture.tobytes() for picture in shapes.paint(painter, prompts, steps=2, **how)]

    first = bytes_of(['a red circle', 'a bar'])
    assert first == bytes_of(['a red circle', 'a bar']) != bytes_of(['a red circle', 'a bar'], seed=1)
    assert bytes_of(['a blue circle', 'a bar'])[0] != first[0]
