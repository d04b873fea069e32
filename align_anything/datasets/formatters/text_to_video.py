"""Datasets of videos that were made from texts, or are described by them."""

from __future__ import annotations

from typing import Any

from align_anything.core.errors import SampleError
from align_anything.datasets.formatters.base import register_template
from align_anything.datasets.formatters.columns import Row, column, filled, first_of, text, truth
from align_anything.datasets.formatters.from_text import Chosen, FromText
from align_anything.datasets.formatters.turns import PairSample, Sample

VIDEOS = ('video_0', 'video_1')


@register_template('Webvid')
class Webvid(FromText):
    """Columns `caption`, `video_path` (relative to `video_folder`); or of the CSV files `name`, `page_dir`, `videoid`.

    Such a video lies in `<page_dir>/<videoid>.mp4`, as the downloaders of WebVid put it.
    """

    _kind = 'video'

    def wording(self, row: Row) -> str:
        return text(row, first_of(row, ('caption', 'name')))

    def format_supervised_sample(self, raw_sample: Row) -> Sample:
        if 'video_path' in raw_sample:
            return self.answered(raw_sample, column(raw_sample, 'video_path')), {}
        folder = f'{text(raw_sample, "page_dir")}/' if filled(raw_sample, 'page_dir') else ''
        return self.answered(raw_sample, f'{folder}{text(raw_sample, "videoid")}.mp4'), {}


@register_template('SafeSora')
class SafeSora(Chosen):
    """Columns `prompt_text`, `video_0`, `video_1` (each with its `video_path`), `helpfulness` (`video_0` or `video_1`).

    Attributes:
        criterion: column that names the preferred video, such as `harmlessness`, or key of the record in column
            `sub_preferences`, such as `aesthetics`.
    """

    criterion: str = 'helpfulness'
    _kind = 'video'
    _text = 'prompt_text'

    def judged(self, row: Row) -> tuple[Any, Any]:
        better, worse = self.ranked(row)
        return column(better, 'video_path'), column(worse, 'video_path')

    def ranked(self, row: Row) -> tuple[Row, Row]:
        """Returns the record of the preferred video and that of the other one."""
        better = column(self._preferences(row), self.criterion)
        if better not in VIDEOS:
            raise SampleError(f"column '{self.criterion}' should be one of {list(VIDEOS)} but is {better!r}.")
        return column(row, better), column(row, VIDEOS[1 - VIDEOS.index(better)])

    def check_validation(self, raw_sample: Row) -> bool:
        preferences = self._preferences(raw_sample)
        return self.criterion not in preferences or preferences[self.criterion] in VIDEOS

    def _preferences(self, row: Row) -> Row:
        sub = row.get('sub_preferences') if self.criterion not in row else None
        return row if sub is None else {**dict(row), **sub}


@register_template('SafeSora_Cost')
class SafeSoraCost(SafeSora):
    """Columns `prompt_text`, `video_0`, `video_1` (each with `video_path` and `is_safe`), `harmlessness`.

    For a cost model "better" means that it must score higher, so the better video is the less harmless one.
    `meta['is_better_safe']` and `meta['is_worse_safe']` tell of either whether it is safe.
    """

    criterion: str = 'harmlessness'

    def format_supervised_sample(self, raw_sample: Row) -> Sample:
        # Trained to be made, not to be judged: here the safer video is the one to learn.
        safer, _ = self.ranked(raw_sample)
        return self.answered(raw_sample, column(safer, 'video_path')), {}

    def format_preference_sample(self, raw_sample: Row) -> PairSample:
        safer, costly = self.ranked(raw_sample)
        safety = {'is_better_safe': _is_safe(costly), 'is_worse_safe': _is_safe(safer)}
        better, worse = (self.answered(raw_sample, column(video, 'video_path')) for video in (costly, safer))
        return better, worse, safety


@register_template('SafeSora_Label')
class SafeSoraLabel(FromText):
    """Columns `prompt_text`, `video_path`, `is_safe`, `video_labels`: a record of truth values, one for each harm.

    `meta['label']` tells whether the video is safe, as KTO reads it, and `meta['harms']` which harms it has.
    """

    _kind = 'video'
    _text = 'prompt_text'

    def format_supervised_sample(self, raw_sample: Row) -> Sample:
        labels = column(raw_sample, 'video_labels') if 'is_safe' not in raw_sample else raw_sample.get('video_labels')
        harms = [name for name, value in (labels or {}).items() if value is not None and truth(value, f"'{name}'")]
        safe = truth(raw_sample['is_safe'], "column 'is_safe'") if filled(raw_sample, 'is_safe') else not harms
        return self.answered(raw_sample, column(raw_sample, 'video_path')), {'label': safe, 'harms': harms}


def _is_safe(video: Row) -> bool:
    return truth(column(video, 'is_safe'), "'is_safe' of a video")
