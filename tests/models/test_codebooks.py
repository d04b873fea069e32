"""Codecs without a network: books of spectra, and videos as the pictures that they are made of."""

from __future__ import annotations

import importlib
import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from align_anything.core.types import Video
from align_anything.models.codecs import base
from align_anything.models.codecs.base import codec_rules, codec_types
from align_anything.models.codecs.spectrum_codebook import spectra_of
from align_anything.testing.codecs import CLASSES, make_codec, make_patch_codebook, make_spectrum_codebook
from tests.models.coded import SIDE, changed, picture, refused, sound, tone


def video(frames: int, every: float, start: float = 0.0) -> Video:
    made = np.stack([np.asarray(picture(20, 30, seed=seed)) for seed in range(frames)])
    return Video(made, start + np.arange(frames) * every, 1 / every)


@pytest.fixture(scope='module')
def framewise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A codec of videos, two frames a second, with that of the pictures beside it."""
    root = tmp_path_factory.mktemp('videos')
    images = [picture(seed=seed) for seed in range(4)]
    make_patch_codebook(root / 'pictures', images, size=(16, 24), patch=4, entries=8)
    (root / 'videos').mkdir()
    config = {'model_type': 'framewise', 'codec': '../pictures', 'fps': 2}
    (root / 'videos' / 'config.json').write_text(json.dumps(config))
    return root / 'videos'


def test_videos_are_encoded_frame_by_frame_at_the_rate_of_the_codec(framewise: Path) -> None:
    rules = pickle.loads(pickle.dumps(codec_rules(framewise)))
    pictures = codec_rules(framewise.parent / 'pictures')
    codec, of_pictures = rules.open(), pictures.open()
    assert (rules.kind, rules.books) == ('video', pictures.books)
    assert rules.fingerprint not in (pictures.fingerprint, '')
    # Frames of a video, their distance in seconds, and which of them is seen every half a second.
    for frames, every, shown in ((3, 0.5, [0, 1, 2]), (5, 0.25, [0, 2, 4]), (2, 1.0, [0, 0, 1]), (4, 1 / 3, [0, 1, 3])):
        for start in (0.0, 7.3):
            medium = video(frames, every, start)
            (codes,) = codec.encode([medium])
            assert tuple(codes.shape) == (1, *rules.grid(medium)) == (1, len(shown), 4, 6)
            wanted = of_pictures.encode([Image.fromarray(medium.frames[number]) for number in shown])
            assert torch.equal(codes, torch.stack(wanted, 1))
    made = codec.decode(codes)
    assert made.frames.shape == (3, 16, 24, 3) and made.frames.dtype == np.uint8
    assert made.timestamps.tolist() == [0.0, 0.5, 1.0] and made.fps == 2
    assert torch.equal(codec.encode([made])[0], codes)


def test_videos_need_a_codec_of_pictures(framewise: Path, tmp_path: Path) -> None:
    sounds, pictures = make_codec('dac', tmp_path / 'dac'), framewise.parent / 'pictures'
    refused(changed(framewise, tmp_path / 'sounds', codec=str(sounds)), 'encodes audio, but frames are pictures')
    refused(changed(framewise, tmp_path / 'still', codec=str(pictures), fps=0), 'fps 0 is not a number')
    refused(changed(framewise, tmp_path / 'none', codec='elsewhere'), 'elsewhere holds no codec')


def test_tones_are_heard_again(tmp_path: Path) -> None:
    pitches = [320, 440, 600, 840, 1120]
    folder = make_spectrum_codebook(tmp_path, [tone(pitch) for pitch in pitches], entries=5)
    codec = codec_rules(folder).open()
    for pitch in pitches:
        medium = tone(pitch)
        (codes,) = codec.encode([medium])
        made = codec.decode(codes)
        assert len(made.samples) == len(medium.samples)
        # Bins of the whole sound are 5 Hz wide.
        assert np.abs(np.fft.rfft(made.samples)).argmax() * 5 == pitch
        assert abs(made.samples).max() == pytest.approx(0.5, abs=0.02)
        assert torch.equal(codec.encode([made])[0], codes)


def test_what_is_left_over_is_the_business_of_the_next_book(tmp_path: Path) -> None:
    sounds = [sound(8000, 8000, seed) for seed in range(2)]
    errors = []
    for books in (1, 2, 3):
        codec = codec_rules(make_spectrum_codebook(tmp_path / str(books), sounds, entries=8, books=books)).open()
        spectra = spectra_of(sounds[0].samples, 200, 40)
        found = sum(book[row] for book, row in zip(codec.books, codec.encode(sounds[:1])[0], strict=True))
        errors.append(float((spectra - found).square().mean()))
    assert errors[0] > errors[1] > errors[2]


ROOT = Path(__file__).resolve().parents[2]
EMITTING = (ROOT / 'docs' / 'emitting.md').read_text()


def section(heading: str) -> str:
    """What docs/emitting.md says under a heading, down to the next one."""
    return re.split(r'\n##+ ', EMITTING.split(f'# {heading}\n')[1])[0]


def blocks(heading: str) -> list[str]:
    return re.findall(r'```python\n(.*?)```', section(heading), re.DOTALL)


def test_the_documents_list_every_codec() -> None:
    table = ' '.join(line.split('|')[1] for line in section('Codecs').splitlines() if line.startswith('| `'))
    within = section('Codecs').split('\n\nA codec is frozen')[0].split('decides. ')[1]
    named = {*re.findall(r'`(\w+)`', table), *re.findall(r'`(\w+)`', within)}
    assert named - {'model_type', '_class_name'} == {*codec_types()}
    for model_type in re.findall(r'`(\w+)`', section('What can be set').split('`code_books` |')[1].split('|')[0]):
        assert CLASSES[model_type]


def test_the_documents_use_a_codec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = blocks('From Python')
    exec(compile(block, 'emitting.md', 'exec'), {})
    assert Image.open('decoded.png').size == (SIDE, SIDE)


def test_the_documents_write_a_codec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = blocks('Your own')
    (tmp_path / 'grey_levels_codec.py').write_text(block)
    (tmp_path / 'codec').mkdir()
    (tmp_path / 'codec' / 'config.json').write_text('{"model_type": "grey_levels", "side": 4}')
    # Other tests are not to know it.
    assert 'grey_levels' not in codec_types()
    monkeypatch.setattr(base._CODECS, '_items', dict(base._CODECS._items))
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module('grey_levels_codec')
    codec = pickle.loads(pickle.dumps(codec_rules(tmp_path / 'codec'))).open()
    (codes,) = codec.encode([picture()])
    assert tuple(codes.shape) == (1, *codec.rules.grid(picture())) and 1 < int(codes.max()) < 16
    assert torch.equal(codec.encode([codec.decode(codes)])[0], codes)
