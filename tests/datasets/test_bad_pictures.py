"""Pictures to learn that are broken, odd or wrongly captioned: each is read in one way that is told, or left out."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from align_anything.core.types import Example, Skipped
from align_anything.datasets.dataset import ExampleDataset, SupervisedTask
from align_anything.datasets.preference import PreferenceTask
from align_anything.datasets.source_loading import load_sources
from tests.datasets.fakes import encode, encode_group, write_rows

IMAGE = frozenset({'image'})


def save(path: Path, size: tuple[int, int] = (8, 6), mode: str = 'RGB', colour: Any = 'red', **more: Any) -> None:
    Image.new(mode, size, colour).save(path, **more)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    frames = [Image.new('RGB', (4, 4), colour) for colour in ('blue', 'red')]
    frames[0].save(tmp_path / 'animated.gif', save_all=True, append_images=frames[1:])
    save(tmp_path / 'clear.png', mode='RGBA', colour=(255, 0, 0, 0))
    save(tmp_path / 'tiny.png', (1, 1))
    save(tmp_path / 'huge.png', (2**13 + 1, 2**13), '1', 0)
    save(tmp_path / 'good.png')
    Image.effect_noise((64, 64), 50).save(tmp_path / 'broken.png')
    (tmp_path / 'broken.png').write_bytes((tmp_path / 'broken.png').read_bytes()[:600])
    (tmp_path / 'empty.png').write_bytes(b'')
    return tmp_path


def made(folder: Path, row: dict[str, Any], seen: list[Any] | None = None) -> Example | Skipped:
    """What becomes of the only row of a dataset; `seen` gets the decoded picture."""

    def encoding(conversation: Any, train_on: str) -> Example:
        if seen is not None:
            seen.append(conversation[-1]['content'][0]['image'])
        return encode(conversation, train_on)

    sources = load_sources(
        write_rows(folder / 'rows.jsonl', [row]), 'Instruction', template_kwargs={'answers': 'image'}
    )
    return ExampleDataset(sources, SupervisedTask(encoding), 'text_to_image', IMAGE)[0]


@pytest.mark.parametrize(
    ('name', 'pixel', 'size'),
    [
        ('animated.gif', (0, 0, 255), (4, 4)),
        ('clear.png', (255, 255, 255), (8, 6)),
        ('tiny.png', (255, 0, 0), (1, 1)),
    ],
)
def test_odd_pictures_are_read_in_one_way(folder: Path, name: str, pixel: tuple, size: tuple) -> None:
    seen: list[Any] = []
    assert isinstance(made(folder, {'text': 'A fox', 'image': name}, seen), Example)
    assert (seen[0].mode, seen[0].size, seen[0].getpixel((0, 0))) == ('RGB', size, pixel)


@pytest.mark.parametrize(
    ('row', 'reason'),
    [
        ({'text': 'A fox', 'image': 'gone.png'}, "gone.png' does not exist"),
        ({'text': 'A fox', 'image': 'empty.png'}, "empty.png' is empty (0 bytes)"),
        ({'text': 'A fox', 'image': 'broken.png'}, "broken.png' cannot be decoded"),
        ({'text': 'A fox', 'image': 'huge.png'}, "huge.png' is too large: 8193 x 8192"),
        ({'text': 'A fox', 'image': None}, "column 'image' is null"),
        ({'text': 'A fox', 'image': ''}, 'the path of the image is empty'),
        ({'text': 'A fox', 'image': ['good.png', 'tiny.png']}, 'should hold one image but holds 2'),
        ({'text': None, 'image': 'good.png'}, "column 'text' is null"),
        ({'text': ['A fox', 'A dog'], 'image': 'good.png'}, "column 'text' should be text but is list"),
        ({'text': '', 'image': 'good.png'}, 'turn 0 is an empty user turn'),
        ({'text': '  \n', 'image': 'good.png'}, 'turn 0 is an empty user turn'),
        ({'image': 'good.png'}, "no column 'instruction' or 'prompt'"),
    ],
)
def test_what_cannot_be_learned_is_left_out_with_the_reason(folder: Path, row: dict, reason: str) -> None:
    left_out = made(folder, row)
    assert isinstance(left_out, Skipped) and reason in left_out.reason and not left_out.filtered
    assert left_out.source == f'{folder}/rows.jsonl:1'


def test_a_number_is_a_caption_as_it_is_written(folder: Path) -> None:
    example = made(folder, {'text': 1.50, 'image': 'good.png'})
    assert ''.join(map(chr, example.responses[0].ids)) == '1.5|image(8, 6)'


def test_both_pictures_of_a_pair_reach_the_model_in_their_own_sizes(folder: Path) -> None:
    buffer = io.BytesIO()
    Image.new('RGB', (3, 9)).save(buffer, 'PNG')
    (folder / 'tall.png').write_bytes(buffer.getvalue())
    rows = [
        {'prompt': 'A fox', 'better_image': 'good.png', 'worse_image': 'tall.png'},
        {'prompt': 'A fox', 'better_image': 'good.png', 'worse_image': 'good.png'},
        {'prompt': 'A fox', 'better_image': 'good.png', 'worse_image': 'broken.png'},
    ]
    sources = load_sources(write_rows(folder / 'rows.jsonl', rows), None, writes=IMAGE)
    dataset = ExampleDataset(sources, PreferenceTask(encode_group), 'text_to_image', IMAGE)
    texts = [''.join(map(chr, response.ids)) for response in dataset[0].responses]
    assert texts == ['A fox|image(8, 6)', 'A fox|image(3, 9)']
    assert dataset[1].reason == 'both answers are the same, so there is nothing to prefer.'
    assert "broken.png' cannot be decoded" in dataset[2].reason
