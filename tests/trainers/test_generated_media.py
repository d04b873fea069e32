"""Generated media: in files beside the records, on the page, and in every tracker."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from align_anything.core.types import Audio, CodedMedia, Media, Video
from align_anything.datasets.media import decode
from align_anything.reporting.html import STRIP_HEIGHT, stacked, strip_of
from align_anything.rollouts.experience import Rollout
from tests.trainers.runs import lines
from tests.trainers.test_completions import Page, conversation, rollout_of, shown
from tests.trainers.test_metrics import fake_wandb
from tests.trainers.test_trackers import FakeMLflow, fake_swanlab

PIXELS = np.random.default_rng(0).integers(0, 256, (60, 120, 3), np.uint8)
PICTURE = Image.fromarray(PIXELS)
TONE = Audio((0.5 * np.sin(np.arange(4000) / 5)).astype(np.float32), 8000)
CLIP = Video(np.stack([PIXELS, 255 - PIXELS]), np.array([0.0, 1.0]), 1.0, TONE)
CODES = CodedMedia('image', torch.arange(6).view(1, 2, 3), 'abc')
STRIP = (120, STRIP_HEIGHT)


def drawn(*answers: list[Any]) -> Rollout:
    """A rollout of two responses to each prompt; `answers` are the media of the first responses."""
    kinds = {Audio: 'audio', Video: 'video'}
    rollout = rollout_of(*[conversation(text=f'Draw {number}.') for number in range(len(answers))])
    for example, media in zip(rollout.examples, answers, strict=True):
        parts = [{'type': kinds.get(type(item), 'image'), kinds.get(type(item), 'image'): item} for item in media]
        example.responses[0].parts = [{'type': 'text', 'text': 'Here: '}, *parts, {'type': 'text', 'text': '.'}]
    return rollout


def test_the_record_names_the_files_in_order(tmp_path: Path) -> None:
    shown(tmp_path, (3, drawn([], [PICTURE, TONE], [CLIP, CODES])))
    records = lines(tmp_path / 'completions.jsonl')
    assert ['media' in record for record in records] == [False, False, True, False, True, False]
    image, sound = (tmp_path / name for name in records[2]['media'])
    assert [path.relative_to(tmp_path).as_posix() for path in (image, sound)] == [
        'completions/00000003/2_1_1.png',
        'completions/00000003/2_1_2.wav',
    ]
    assert records[2]['response'] == 'Here: <image><audio>.'
    assert np.array_equal(decode(Media('image', str(image))), PIXELS)
    assert np.array_equal(decode(Media('audio', str(sound))).samples, TONE.samples)
    video, played, track, codes = (tmp_path / name for name in records[4]['media'])
    assert np.array_equal(decode(Media('video', str(video))).frames, CLIP.frames)
    assert played.suffix == '.mp4' and len(decode(Media('video', str(played))).frames) == len(CLIP.frames)
    assert decode(Media('audio', str(track))).rate == 8000
    assert json.loads(codes.read_text()) == {'codes': [[[0, 1, 2], [3, 4, 5]]], 'codec': 'abc'}


def test_files_follow_the_records_when_a_run_goes_on(tmp_path: Path) -> None:
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    one, two, other = drawn([PICTURE]), drawn([TONE]), drawn([PICTURE, PICTURE])
    shown(whole, (2, one), (4, two))
    shown(broken, (2, one), (4, other), (6, other))
    shown(broken, (4, two), resume_step=2)

    def files(folder: Path) -> dict[str, bytes]:
        return {
            path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob('*.*') if path.is_file()
        }

    found = files(broken)
    assert found == files(whole)
    assert {name for name in found if name.startswith('completions/')} == {
        name for record in lines(broken / 'completions.jsonl') for name in record.get('media', [])
    }
    for _ in range(2):
        shown(broken)
    assert not (broken / 'completions').exists()
    shown(broken, (2, one))
    shown(broken, (2, two))
    assert [path.name for path in (broken / 'completions.old').rglob('*.*')] == ['1_1_1.png']
    assert [path.name for path in (broken / 'completions').rglob('*.*')] == ['1_1_1.wav']


def test_the_page_shows_what_was_generated(tmp_path: Path) -> None:
    shown(tmp_path, (2, drawn([PICTURE, TONE], [CODES], [CLIP])))
    page = Page(tmp_path / 'completions.html')
    tags = [tag for tag, _ in page.tags]
    assert tags.count('img') == 1 + 2 and tags.count('audio') == 1 + 1
    sources = {tag: dict(attributes)['src'] for tag, attributes in page.tags if tag in ('img', 'audio')}
    heard = decode(Media('audio', sources['audio']))
    assert heard.rate == 8000 and np.abs(heard.samples - TONE.samples).max() < 1e-4
    (cell,) = (cell for cell in page.cells if 'codes' in cell)
    assert cell == 'Here: <image>.image of 1 × 2 × 3 codes'


def test_tiny_pictures_are_enlarged_pixel_by_pixel() -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[2, 3] = 255
    strip = strip_of(conversation(('image', Image.fromarray(pixels))))
    assert strip.size == (96, 96)
    enlarged = np.asarray(strip)
    assert (enlarged[24:36, 36:48] == 255).all() and enlarged.sum() == 255 * 3 * 12 * 12
    assert strip_of(conversation(('image', CODES))) is None


def test_pictures_are_stacked() -> None:
    red, blue = Image.new('RGB', (4, 2), 'red'), Image.new('RGB', (2, 3), 'blue')
    column = stacked([red, None, blue])
    assert column.size == (4, 2 + 1 + 3)
    assert [column.getpixel(at) for at in ((3, 1), (0, 2), (1, 3), (3, 5))] == [
        (255, 0, 0),
        (0, 0, 0),
        (0, 0, 255),
        (0, 0, 0),
    ]
    assert stacked([None, None]) is None and stacked([]) is None


# Trackers

ROLLOUT = ([PICTURE], [TONE, TONE])


def test_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    shown(tmp_path, (2, drawn(*ROLLOUT)), log_type='tensorboard')
    events = EventAccumulator(str(tmp_path / 'tensorboard'))
    events.Reload()
    (picture,) = events.Tensors('completions/responses to prompt 1')
    with Image.open(io.BytesIO(make_ndarray(picture.tensor_proto)[2])) as image:
        assert image.size == (STRIP[0], STRIP[1] + 1), 'a line for the response without a picture'
    (sound,) = events.Tensors('completions/prompt 2, response 1')
    heard = decode(Media('audio', make_ndarray(sound.tensor_proto)[0]))
    assert sound.step == 2 and np.abs(heard.samples - TONE.samples).max() < 1e-3


def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fake_wandb()
    fake.Image, fake.Audio = lambda picture: picture.size, Path
    fake.Table = lambda columns, data: types.SimpleNamespace(columns=columns, data=data)
    monkeypatch.setitem(sys.modules, 'wandb', fake)
    monkeypatch.setattr(importlib.util, 'find_spec', lambda _: object())
    shown(tmp_path, (2, drawn(*ROLLOUT)), (4, drawn([PICTURE])), log_type='wandb')
    both, pictures = (logged['completions'] for logged in fake.logged)
    rewards = ['reward', 'reward/right', 'reward/brief']
    assert both.columns == ['prompt', 'media', 'response', 'generated', 'sound', *rewards]
    assert both.data[0] == ['Draw 0.', None, 'Here: <image>.', STRIP, None, 0.5, 1.0, -1.0]
    assert both.data[2][3] is None and both.data[2][4] == tmp_path / 'completions' / '00000002' / '2_1_1.wav'
    assert both.data[1][3:5] == [None, None]
    assert pictures.columns == ['prompt', 'media', 'response', 'generated', *rewards]


def test_clearml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[dict[str, Any]] = []
    take = lambda **values: reported.append(values)  # noqa: E731
    logger = types.SimpleNamespace(report_table=take, report_image=take, report_media=take)
    task = types.SimpleNamespace(
        id='task-1',
        set_initial_iteration=lambda iteration: None,
        connect_configuration=lambda settings, name: None,
        get_logger=lambda: logger,
        close=lambda: None,
    )
    module = types.SimpleNamespace(Task=types.SimpleNamespace(init=lambda **_: task))
    monkeypatch.setitem(sys.modules, 'clearml', module)
    monkeypatch.setattr(importlib.util, 'find_spec', lambda _: object())
    shown(tmp_path, (2, drawn(*ROLLOUT)), log_type='clearml')
    _, picture, sound = reported
    assert (picture['series'], picture['image'].size) == ('responses to prompt 1', (STRIP[0], STRIP[1] + 1))
    assert sound['series'] == 'prompt 2, response 1' and sound['local_path'].endswith('00000002/2_1_1.wav')


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeMLflow(monkeypatch)
    shown(tmp_path, (2, drawn(*ROLLOUT)), log_type='mlflow')
    ((_, picture),), ((values, sound),) = fake.of('log_image'), fake.of('log_artifact')
    assert picture['artifact_file'] == 'completions/step 00000002/responses to prompt 1.png'
    assert Path(values[1]).is_file() and sound['artifact_path'].endswith('prompt 2, response 1')


def test_swanlab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fake_swanlab(monkeypatch)
    fake.Audio = lambda path, caption: (Path(path).name, caption)
    shown(tmp_path, (2, drawn(*ROLLOUT)), log_type='swanlab')
    logged, _ = fake.logged[0]
    assert logged['completions/media'] == [((STRIP[0], STRIP[1] + 1), 'responses to prompt 1')]
    assert logged['completions/sounds'] == [('2_1_1.wav', 'prompt 2, response 1')]


def test_sounds_on_the_page_are_data(tmp_path: Path) -> None:
    shown(tmp_path, (2, drawn([TONE])))
    page = Page(tmp_path / 'completions.html')
    (source,) = (attributes['src'] for tag, attributes in page.tags if tag == 'audio')
    assert base64.b64decode(source.removeprefix('data:audio/wav;base64,')).startswith(b'RIFF')
