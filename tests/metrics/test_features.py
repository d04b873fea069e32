"""Features of encoders by path, and the distances of generated media on them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from align_anything.core.errors import DataError, ModelError
from align_anything.core.types import Audio, Video
from align_anything.datasets.media.writing import png, wav
from align_anything.metrics.asking import ask
from align_anything.metrics.base import make_metrics
from align_anything.metrics.features import features_of, open_encoder
from align_anything.testing.tiny.encoders import RATE, build_encoder
from align_anything.testing.tiny.judges import build_judge
from tests.metrics.common import samples_of

RANDOM = np.random.default_rng(0)
PICTURES = [Image.fromarray(RANDOM.integers(0, 256, (32, 32, 3), np.uint8)) for _ in range(6)]


@pytest.fixture(scope='module')
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_judge('clip', tmp_path_factory.mktemp('features') / 'clip'))


def real(folder: Path) -> Path:
    folder.mkdir()
    for number, picture in enumerate(PICTURES):
        (folder / f'{number}.png').write_bytes(png(picture))
    return folder


def test_the_same_pictures_have_no_distance(clip: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = {'encoder': clip, 'reference': str(real(tmp_path / 'real'))}
    fid, kid = make_metrics(['fid', 'kid'], {'fid': options, 'kid': options})
    same = samples_of(tmp_path / 'same', *({'media': [picture]} for picture in PICTURES))
    frames = np.zeros((4, 32, 32, 3), np.uint8) + np.arange(4, dtype=np.uint8)[:, None, None, None]
    dark = samples_of(tmp_path / 'dark', {'media': [Video(frames, np.arange(4) / 4, 4.0)]})
    with caplog.at_level(logging.WARNING):
        found = fid.measure(same)
    assert found.value == pytest.approx(0, abs=1e-9) and 'biased upwards' in caplog.text
    assert found.details['generated'] == found.details['real'] == 6
    assert fid.measure(dark).value > 1e-4 and fid.measure(dark).details['generated'] == 4
    assert kid.measure(dark).value > kid.measure(same).value
    with pytest.raises(DataError, match='2 at least'):
        fid.measure(samples_of(tmp_path / 'one', {'media': [PICTURES[0]]}))
    (tmp_path / 'none').mkdir()
    (empty,) = make_metrics(['fid'], {'fid': {**options, 'reference': str(tmp_path / 'none')}})
    with pytest.raises(DataError, match='has no image file'):
        empty.measure(same)


@pytest.mark.extended
def test_encoders_of_other_kinds(tmp_path: Path) -> None:
    """A vision model without texts gives its pooled output; CLAP hears."""
    encoder = open_encoder(str(build_encoder('dinov2', tmp_path / 'dinov2')), None, 4)
    features = features_of(iter(PICTURES), encoder, 4)
    assert encoder.kind == 'image' and features.shape[0] == 6 and features.dtype == np.float64
    assert np.allclose(features[:1], features_of(iter(PICTURES[:1]), encoder, 4), atol=1e-5)
    sounds = [Audio((0.1 * n * np.sin(np.arange(RATE) / 9)).astype(np.float32), RATE) for n in range(1, 4)]
    (tmp_path / 'real').mkdir()
    for number, sound in enumerate(sounds):
        (tmp_path / 'real' / f'{number}.wav').write_bytes(wav(sound))
    options = {'encoder': str(build_judge('clap', tmp_path / 'clap')), 'reference': str(tmp_path / 'real')}
    (fad,) = make_metrics(['fid'], {'fid': options})
    found = fad.measure(samples_of(tmp_path / 'same', *({'media': [sound]} for sound in sounds)))
    assert found.value == pytest.approx(0, abs=1e-6)


def test_a_checkpoint_answers_questions_about_pictures(tiny: Callable[..., Path]) -> None:
    questions = [(picture, f'How many dogs, {number}?') for number, picture in enumerate(PICTURES[:3])]
    together = ask(str(tiny('llava')), questions, 3)
    assert len(together) == 3 and any(together)
    assert together == [*ask(str(tiny('llava')), questions[:1], 1), *ask(str(tiny('llava')), questions[1:], 1)]
    with pytest.raises(ModelError, match='reads no pictures'):
        ask(str(tiny('llama')), questions, 3)
