"""What the templates share whose answer is a medium that a text asks for."""

from __future__ import annotations

from typing import Any

from align_anything.core.errors import SampleError
from align_anything.core.types import MediaKind
from align_anything.datasets.formatters.base import BaseFormatter
from align_anything.datasets.formatters.columns import Row, column, text
from align_anything.datasets.formatters.turns import PairSample, Sample, Turns, shown, user


class FromText(BaseFormatter):
    """Rows with a text and what is to be made of it: an image, a video or audio.

    Attributes:
        request: what is put before each text, such as `Draw a picture: `.
        _kind: what is made.
        _text: column that holds the text.
    """

    request: str = ''
    _kind: MediaKind = 'image'
    _text: str = 'prompt'

    def format_prompt_only_sample(self, raw_sample: Row) -> Sample:
        return [*self.opening(), user(self.request + self.wording(raw_sample))], {}

    def wording(self, row: Row) -> str:
        """Returns the text that asks for the medium."""
        return text(row, self._text)

    def answered(self, row: Row, medium: Any) -> Turns:
        """Returns the conversation with the medium as its answer."""
        prompt, _ = self.format_prompt_only_sample(row)
        answer = shown(self._kind, medium)
        if len(answer) != 1:
            raise SampleError(f'the answer should be one {self._kind} but there are {len(answer)}.')
        return [*prompt, {'role': 'assistant', 'content': answer}]


class Illustrated(FromText):
    """Rows with a text and one medium in column `_media`."""

    _media: str = 'image'

    def format_supervised_sample(self, raw_sample: Row) -> Sample:
        return self.answered(raw_sample, column(raw_sample, self._media)), {}


class Chosen(FromText):
    """Rows with a text and two media.

    Attributes:
        _better: column with the better medium.
        _worse: column with the worse one.
    """

    _better: str = 'better_image'
    _worse: str = 'worse_image'

    def format_preference_sample(self, raw_sample: Row) -> PairSample:
        better, worse = self.judged(raw_sample)
        return self.answered(raw_sample, better), self.answered(raw_sample, worse), {}

    def judged(self, row: Row) -> tuple[Any, Any]:
        """Returns the better medium and the worse one."""
        return column(row, self._better), column(row, self._worse)
