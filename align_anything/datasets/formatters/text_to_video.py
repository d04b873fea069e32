"""Datasets of videos that were made from texts, or are described by them."""

from __future__ import annotations

from typing import Any

from align_anything.core.errors import SampleError
from align_anything.datasets.formatters.base import register_template
from align_anything.datasets.formatters.columns import Row, column
from align_anything.datasets.formatters.from_text import Chosen, Illustrated

VIDEOS = ('video_0', 'video_1')


@register_template('Webvid')
class Webvid(Illustrated):
    """Columns `caption`, `video_path` (relative to `video_folder`)."""

    _kind = 'video'
    _text = 'caption'
    _media = 'video_path'


@register_template('SafeSora')
class SafeSora(Chosen):
    """Columns `prompt_text`, `video_0`, `video_1` (each with its `video_path`), `helpfulness` (`video_0` or `video_1`).

    Attributes:
        criterion: column that names the preferred video, such as `harmlessness`.
    """

    criterion: str = 'helpfulness'
    _kind = 'video'
    _text = 'prompt_text'

    def judged(self, row: Row) -> tuple[Any, Any]:
        better = column(row, self.criterion)
        if better not in VIDEOS:
            raise SampleError(f"column '{self.criterion}' should be one of {list(VIDEOS)} but is {better!r}.")
        worse = VIDEOS[1 - VIDEOS.index(better)]
        return column(column(row, better), 'video_path'), column(column(row, worse), 'video_path')

    def check_validation(self, raw_sample: Row) -> bool:
        return self.criterion not in raw_sample or raw_sample[self.criterion] in VIDEOS
