"""Visual question answering with several questions about the image of a row."""

from __future__ import annotations

from align_anything.core.errors import SampleError
from align_anything.datasets.formatters.base import BaseFormatter, register_template
from align_anything.datasets.formatters.columns import Row, column, texts
from align_anything.datasets.formatters.turns import Sample, assistant, user, user_with


class MultiQA(BaseFormatter):
    """Columns `questions`, `answers` (lists of equal length), `image`: one conversation of as many rounds."""

    def format_supervised_sample(self, raw_sample: Row) -> Sample:
        image = column(raw_sample, 'image')
        questions, answers = texts(raw_sample, 'questions'), texts(raw_sample, 'answers')
        if len(questions) != len(answers) or not questions:
            raise SampleError(f'the row has {len(questions)} questions but {len(answers)} answers.')
        asked = [user_with('image', image, questions[0]), *(user(question) for question in questions[1:])]
        rounds = zip(asked, map(assistant, answers), strict=True)
        return [*self.opening(), *(turn for round_ in rounds for turn in round_)], {'image': image}


@register_template('OCRVQA')
class OCRVQA(MultiQA):
    """Columns `questions`, `answers`, `image` (a book cover)."""


@register_template('VisualGenome')
class VisualGenome(MultiQA):
    """Columns `questions`, `answers`, `image`."""
