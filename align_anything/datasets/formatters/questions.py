"""What the templates with one question about one medium share."""

from __future__ import annotations

from align_anything.core.types import MediaKind
from align_anything.datasets.formatters.base import BaseFormatter
from align_anything.datasets.formatters.columns import Row, chosen_id, column, first_of, is_chosen_id, text
from align_anything.datasets.formatters.turns import PairSample, Sample, assistant, pair, user_with


class MediaQuestion(BaseFormatter):
    """Rows with a medium and a question about it.

    Attributes:
        _kind: what the question is about.
        _media: column that holds it.
        _questions: columns that may hold the question.
    """

    _kind: MediaKind = 'image'
    _media: str = 'image'
    _questions: tuple[str, ...] = ('question', 'prompt')

    def format_prompt_only_sample(self, raw_sample: Row) -> Sample:
        media = column(raw_sample, self._media)
        question = text(raw_sample, first_of(raw_sample, self._questions))
        return [*self.opening(), user_with(self._kind, media, question)], {self._kind: media}


class AnsweredOrRanked(MediaQuestion):
    """Questions with an answer in column `response`, or with two of which one is marked as preferred.

    Attributes:
        _preference: the column that names the preferred answer, 1 or 2.
    """

    _preference: str = 'overall_response'

    def format_supervised_sample(self, raw_sample: Row) -> Sample:
        if 'response' not in raw_sample and self._preference in raw_sample:
            return super().format_supervised_sample(raw_sample)
        prompt, meta = self.format_prompt_only_sample(raw_sample)
        return [*prompt, assistant(text(raw_sample, 'response'))], meta

    def format_preference_sample(self, raw_sample: Row) -> PairSample:
        preferred = chosen_id(raw_sample, self._preference, (1, 2))
        prompt, meta = self.format_prompt_only_sample(raw_sample)
        better, worse = text(raw_sample, f'response_{preferred}'), text(raw_sample, f'response_{3 - preferred}')
        return pair(prompt, better, worse, meta)

    def check_validation(self, raw_sample: Row) -> bool:
        return is_chosen_id(raw_sample, self._preference, (1, 2))


class Refined(MediaQuestion):
    """Questions with a first answer in column `response` and a better one, written after feedback, in `refinement`."""

    def format_preference_sample(self, raw_sample: Row) -> PairSample:
        prompt, meta = self.format_prompt_only_sample(raw_sample)
        return pair(prompt, text(raw_sample, 'refinement'), text(raw_sample, 'response'), meta)
