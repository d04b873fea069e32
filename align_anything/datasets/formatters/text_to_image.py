"""Datasets of images that were made from texts, and of people's choices between them."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from align_anything.core.errors import SampleError
from align_anything.datasets.formatters.base import register_template
from align_anything.datasets.formatters.columns import Row, column, number, truth
from align_anything.datasets.formatters.from_text import Chosen, Illustrated
from align_anything.datasets.formatters.preference import Preference, Rated
from align_anything.datasets.formatters.turns import PairSample

TIE = [0.5, 0.5]
"""Both labels of a pair of which neither image is preferred."""


@register_template('DiffusionDB')
class DiffusionDB(Illustrated):
    """Columns `prompt`, `image`."""


@register_template('DiffusionDBCanny')
class DiffusionDBCanny(Illustrated):
    """Columns `text`, `image`."""

    _text = 'text'


@register_template('Pickapic')
class Pickapic(Chosen):
    """Columns `caption`, `jpg_0`, `jpg_1`, and `label_0`, `label_1`: 1 for the preferred image, 0.5 both for a tie.

    Rows without a label (`has_label`) are filtered.

    Attributes:
        keep_ties: gives ties the soft label 0.5, which reward models and losses of pairs read; else they are filtered.
    """

    keep_ties: bool = False
    _text = 'caption'

    def judged(self, row: Row) -> tuple[Any, Any]:
        labels = self._labels(row)
        if not self._is_judged(labels):
            raise SampleError(f"columns 'label_0' and 'label_1' are {labels}, which prefers neither image.")
        better = labels.index(max(labels))
        return column(row, f'jpg_{better}'), column(row, f'jpg_{1 - better}')

    def format_preference_sample(self, raw_sample: Row) -> PairSample:
        better, worse, meta = super().format_preference_sample(raw_sample)
        return better, worse, {**meta, 'soft_label': 0.5} if self._labels(raw_sample) == TIE else meta

    def check_validation(self, raw_sample: Row) -> bool:
        # Prompts alone need no labels.
        if 'label_0' not in raw_sample:
            return True
        has_label = 'has_label' not in raw_sample or truth(raw_sample['has_label'], "column 'has_label'")
        return has_label and self._is_judged(self._labels(raw_sample))

    def _is_judged(self, labels: list[float]) -> bool:
        return sorted(labels) == [0, 1] or (self.keep_ties and labels == TIE)

    def _labels(self, row: Row) -> list[float]:
        return [number(column(row, name), f"column '{name}'") for name in ('label_0', 'label_1')]


@register_template('PICKAPIC_TI2TI')
class PICKAPIC_TI2TI(Pickapic):
    """The columns of Pickapic, for models that also write texts: each caption is a request to draw."""

    request: str = 'Draw this: '


@register_template('ImageRewardDB')
class ImageRewardDB(Preference):
    """Columns `prompt`, `img_better`, `img_worse`: the pairs of ImageReward."""

    answers: str = 'image'
    _answer_columns = MappingProxyType({'chosen': ('img_better',), 'rejected': ('img_worse',)})


@register_template('HPDv2')
class HPDv2(Rated):
    """Columns `prompt`, `file_path`, `human_preference` (1 for the preferred image); or `image_path` with `rank`."""

    answers: str = 'image'
    _answer_columns = MappingProxyType({'responses': ('file_path', 'image_path')})
    _rating_columns = ('human_preference',)


@register_template('HPDv3')
class HPDv3(Preference):
    """Columns `prompt`, `path1`, `path2`: the first image is preferred."""

    answers: str = 'image'
    _answer_columns = MappingProxyType({'chosen': ('path1',), 'rejected': ('path2',)})
