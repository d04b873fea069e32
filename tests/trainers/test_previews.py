"""What a run shows of fixed prompts, and evaluations that differ by the weights and by nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from align_anything.algorithms.sft import SFT
from align_anything.core.types import Audio, Video
from align_anything.reporting.previews import PreviewPage, grid_of
from align_anything.reporting.spectrogram import spectrogram
from tests.trainers.denoising import PICTURES, metrics, offline, write_digits
from tests.trainers.runs import run, succeed

Tiny = Callable[..., Path]
PROMPTS = ['a zero', 'a one', 'a two']
EVALUATED = {
    'eval_template': 'Messages',
    'eval_template_kwargs': '{images: ""}',
    'eval_strategy': 'steps',
    'eval_interval': 1,
    'preview_steps': 2,
    'preview_every': 2,
    'max_steps': 3,
}


@pytest.fixture(scope='module')
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits to draw."""
    return write_digits(tmp_path_factory.mktemp('digits'), 12)


def leaving_the_generator_alone(rank: int) -> None:
    from align_anything.trainers.runs.previews import RunPreviews

    inner = RunPreviews.__call__

    def preview(self, *given):
        before = torch.random.get_rng_state()
        inner(self, *given)
        assert torch.equal(torch.random.get_rng_state(), before)

    RunPreviews.__call__ = preview


def test_previews_and_evaluations_hang_on_the_weights_alone(tiny: Tiny, rows: Path, tmp_path: Path) -> None:
    """Not on the number of ranks, the seed or how often they were made: here nothing is learned."""
    one, two, listed = tmp_path / 'one', tmp_path / 'two', tmp_path / 'prompts.txt'
    listed.write_text('\n'.join([*PROMPTS, '', '']))
    common = {**EVALUATED, 'eval_datasets': rows, 'learning_rate': 1e-30}
    argv = offline(one, tiny('sd3'), rows, preview_prompts=f'[{", ".join(PROMPTS)}]', **common)
    succeed(argv, 1, PICTURES, leaving_the_generator_alone)
    more = {'seed': 7, 'ds_cfgs': 'ds_z3_config.json', 'preview_prompts': listed}
    succeed(offline(two, tiny('sd3'), rows, **common, **more), 2, PICTURES)
    names = sorted(path.name for path in (one / 'previews').iterdir())
    assert names == ['00000000', '00000002', '00000003']
    shown = [path for name in names for path in sorted((one / 'previews' / name).iterdir())]
    assert [path.name for path in shown] == ['001_1.png', '002_1.png', '003_1.png', 'grid.png'] * 3
    pictures = [path.read_bytes() for path in shown]
    assert pictures[:4] == pictures[4:8] == pictures[8:] and len({*pictures}) == 4
    assert [path.read_bytes() for path in sorted((two / 'previews').glob('*/*'))] == pictures
    page = (one / 'previews.html').read_text()
    assert page.count('<details class="preview"') == 3 and page.count('a two') == 3 and page.count('<img') == 9
    evaluated = metrics(one, 'eval/loss')
    assert len(evaluated) == 3 and len({*evaluated}) == 1
    assert metrics(two, 'eval/loss') == pytest.approx(evaluated, rel=1e-5)
    assert len({*metrics(one, 'train/loss')}) == 3


@pytest.mark.parametrize('content', [None, ' \n\n'])
def test_a_file_without_prompts_is_refused(content: str | None, tiny: Tiny, rows: Path, tmp_path: Path) -> None:
    file = tmp_path / 'prompts.txt'
    if content is not None:
        file.write_text(content)
    (ended,) = run(offline(tmp_path / 'run', tiny('sd3'), rows, preview_prompts=file), 1, PICTURES, algorithm=SFT)
    assert ended.code == 2 and f'diffusion_cfgs.preview_prompts: {file}' in ended.output


class Shown:
    """A writer that keeps what trackers get."""

    def __init__(self) -> None:
        self.answers: list[Any] = []

    def show(self, step: int, answers: Any, title: str) -> None:
        self.answers.append((step, title, answers))


def clip(frames: int, value: int) -> Video:
    shades = numpy.arange(value, value + 4 * frames, 4, dtype=numpy.uint8)
    return Video(numpy.tile(shades[:, None, None, None], (1, 8, 12, 3)), numpy.arange(frames) / 8, 8.0)


def test_clips_are_shown_moving(tmp_path: Path) -> None:
    writer = Shown()
    PreviewPage(tmp_path, ['dark', 'bright'], 'video', None).write(4, [clip(3, 20), clip(5, 220)], writer)
    folder = tmp_path / 'previews' / '00000004'
    assert sorted(path.name for path in folder.iterdir()) == [
        *(f'{name}.{suffix}' for name in ('001_1', '002_1') for suffix in ('apng', 'mp4')),
        *('grid.gif', 'grid.mp4'),
    ]
    with Image.open(folder / 'grid.gif') as grid:
        assert (grid.n_frames, grid.size, grid.info['duration']) == (5, (24, 8), 120)
        frame = numpy.asarray(grid.convert('RGB'))
    assert frame[:, :12].max() < 40 and frame[:, 12:].min() > 200
    ((step, title, answers),) = writer.answers
    assert (step, title, [one.prompt for one in answers]) == (4, 'previews', ['dark', 'bright'])
    assert all(one.pictures[0] is not None and one.sounds == [None] for one in answers)


def test_sounds_are_shown_and_heard(tmp_path: Path) -> None:
    writer, rate = Shown(), 8000
    times = numpy.arange(rate) / rate
    sound = Audio(numpy.sin(2 * numpy.pi * 1000 * times).astype(numpy.float32), rate)
    PreviewPage(tmp_path, ['a tone'], 'audio', None).write(0, [sound], writer)
    folder = tmp_path / 'previews' / '00000000'
    assert sorted(path.name for path in folder.iterdir()) == ['001_1.wav', 'grid.png']
    page = (tmp_path / 'previews.html').read_text()
    assert page.count('<audio') == 1 and page.count('<img') == 1
    ((_, _, (answered,)),) = writer.answers
    assert answered.sounds == [folder / '001_1.wav'] and answered.pictures[0] is not None
    picture = numpy.asarray(spectrogram(sound, (100, 257))).sum(-1)
    # 1000 Hz are a quarter of the way from 0, below, to 4000 Hz.
    assert int(picture.mean(1).argmax()) == pytest.approx(256 * 3 / 4, abs=2)
    assert not numpy.asarray(spectrogram(Audio(numpy.zeros(10, numpy.float32), rate))).any()


def test_a_resumed_run_drops_later_previews(tmp_path: Path) -> None:
    picture, writer = Image.new('RGB', (8, 8)), Shown()
    page = PreviewPage(tmp_path, ['x'], 'image', None)
    for step in (0, 2, 4):
        page.write(step, [picture], writer)
    again = PreviewPage(tmp_path, ['x'], 'image', 2)
    assert sorted(path.name for path in (tmp_path / 'previews').iterdir()) == ['00000000', '00000002']
    again.write(4, [picture], writer)
    text = (tmp_path / 'previews.html').read_text()
    assert [text.count(f'--step:{step}"') for step in (0, 2, 4)] == [1, 1, 1]


def test_a_grid_has_all_in_their_order() -> None:
    colours = [(10 * number, 0, 0) for number in range(1, 6)]
    grid = grid_of([Image.new('RGB', (4, 2), colour) for colour in colours])
    assert grid.size == (12, 4)
    assert [grid.getpixel((4 * (number % 3), 2 * (number // 3))) for number in range(5)] == colours
