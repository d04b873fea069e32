"""What a run shows of fixed prompts as it goes: files, a grid of all, a page by step, and the tracker."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy
from PIL import Image

from align_anything.core.types import Audio, MediaKind, Video
from align_anything.datasets.media.writing import gif, mp4, png
from align_anything.reporting.html import render, strip_of
from align_anything.reporting.media_files import MediaFiles
from align_anything.reporting.metrics import MetricsWriter
from align_anything.reporting.spectrogram import spectrogram
from align_anything.reporting.step_page import StepPage
from align_anything.reporting.trackers.base import Answers

FOLDER, PAGE_FILE, GRID = 'previews', 'previews.html', 'grid'


class PreviewPage:
    """Writes the medium that a model makes of each prompt to `previews/<step>`, and shows it on `previews.html`.

    Beside the media, without loss, there is `grid.png` of all images, or of the spectrograms of all sounds, and
    `grid.gif` and `grid.mp4` of all clips.

    Args:
        folder: of the run.
        prompts: what is previewed.
        kind: of the media.
        resume_step: step that the run goes on from, whose later previews are dropped; None starts afresh.
    """

    def __init__(self, folder: Path, prompts: Sequence[str], kind: MediaKind, resume_step: int | None) -> None:
        self._run, self._prompts, self._kind = folder, prompts, kind
        self._files = MediaFiles(folder, resume_step, FOLDER)
        self._page = StepPage(
            folder / PAGE_FILE,
            resume_step,
            lambda earlier: render('previews.html.jinja', folder=FOLDER, earlier=earlier),
        )

    def write(self, step: int, media: Sequence[Any], writer: MetricsWriter) -> None:
        """Writes and shows what the model makes of each prompt after a step, also in the tracker of `writer`."""
        parts = [[{'type': self._kind, self._kind: medium}] for medium in media]
        files = [self._files.write(step, f'{number:03d}', own) for number, own in enumerate(parts, 1)]
        for suffix, content in GRIDS[self._kind](media):
            self._files.write_file(step, f'{GRID}{suffix}', content)
        if self._kind == 'audio':
            parts = [[*own, {'type': 'image', 'image': spectrogram(own[0]['audio'])}] for own in parts]
        samples = [{'prompt': prompt, 'parts': own} for prompt, own in zip(self._prompts, parts, strict=True)]
        self._page.append(render('preview.html.jinja', step=step, samples=samples))
        answers = [self._answers(*shown) for shown in zip(self._prompts, parts, files, strict=True)]
        writer.show(step, answers, FOLDER)

    def _answers(self, prompt: str, parts: list[dict[str, Any]], files: Sequence[str]) -> Answers:
        sounds = [self._run / name for name in files if name.endswith('.wav')]
        return Answers(
            prompt=prompt,
            picture=None,
            responses=[''],
            pictures=[strip_of([{'role': 'assistant', 'content': parts}])],
            sounds=[sounds[0] if sounds else None],
            rewards={},
        )


def grid_of(pictures: Sequence[Image.Image]) -> Image.Image:
    """Returns pictures in rows, as many as there are columns or one less, in their order; each as large as it is."""
    columns = math.ceil(math.sqrt(len(pictures)))
    width, height = max(item.width for item in pictures), max(item.height for item in pictures)
    grid = Image.new('RGB', (columns * width, math.ceil(len(pictures) / columns) * height))
    for number, picture in enumerate(pictures):
        grid.paste(picture, (number % columns * width, number // columns * height))
    return grid


def _of_images(images: Sequence[Image.Image]) -> list[tuple[str, bytes]]:
    return [('.png', png(grid_of(images)))]


def _of_clips(videos: Sequence[Video]) -> list[tuple[str, bytes]]:
    count = max(len(video.frames) for video in videos)
    frames = [
        numpy.asarray(grid_of([Image.fromarray(video.frames[min(at, len(video.frames) - 1)]) for video in videos]))
        for at in range(count)
    ]
    longest = max(videos, key=lambda video: len(video.frames))
    together = Video(numpy.stack(frames), longest.timestamps, longest.fps)
    return [('.gif', gif(together)), ('.mp4', mp4(together))]


def _of_sounds(sounds: Sequence[Audio]) -> list[tuple[str, bytes]]:
    return [('.png', png(grid_of([spectrogram(sound) for sound in sounds])))]


GRIDS: dict[MediaKind, Callable[[Sequence[Any]], list[tuple[str, bytes]]]] = {
    'image': _of_images,
    'video': _of_clips,
    'audio': _of_sounds,
}
