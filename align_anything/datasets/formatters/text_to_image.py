"""Datasets of images that were made from texts, and of people's choices between them."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from align_anything.core.errors import SampleError
from align_anything.datasets.formatters.base import register_template
from align_anything.datasets.formatters.columns import Row, column, number
from align_anything.datasets.formatters.from_text import Chosen, Illustrated
from align_anything.datasets.formatters.preference import Preference, Rated


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

    Ties are filtered.
    """

    _text = 'caption'

    def judged(self, row: Row) -> tuple[Any, Any]:
        labels = self._labels(row)
        if sorted(labels) != [0, 1]:
            raise SampleError(f"columns 'label_0' and 'label_1' are {labels}, which prefers neither image.")
        better = labels.index(1)
        return column(row, f'jpg_{better}'), column(row, f'jpg_{1 - better}')

    def check_validation(self, raw_sample: Row) -> bool:
        # Prompts alone need no labels.
        return 'label_0' not in raw_sample or sorted(self._labels(raw_sample)) == [0, 1]

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
