"""Visual question answering with one question a row."""

from __future__ import annotations

from collections import Counter

from align_anything.core.errors import SampleError
from align_anything.datasets.formatters.base import BaseFormatter, register_template
from align_anything.datasets.formatters.columns import Row, column, text, texts
from align_anything.datasets.formatters.turns import Sample, assistant, user_with


@register_template('GQA')
class GQA(BaseFormatter):
    """Columns `question`, `answer`, `image_path` (relative to `image_folder`)."""

    def format_supervised_sample(self, raw_sample: Row) -> Sample:
        image = column(raw_sample, 'image_path')
        question = user_with('image', image, text(raw_sample, 'question'))
        return [*self.opening(), question, assistant(text(raw_sample, 'answer'))], {'image': image}


@register_template('OK-VQA')
class OKVQA(BaseFormatter):
    """Columns `question`, `answers` (of several people; the most frequent one is learned), `image`.

    All answers are in `meta['answers']`, which evaluations compare with.
    """

    def format_supervised_sample(self, raw_sample: Row) -> Sample:
        image = column(raw_sample, 'image')
        answers = texts(raw_sample, 'answers')
        if not answers:
            raise SampleError("column 'answers' is an empty list.")
        # Of equally frequent answers the first one: most_common keeps their order.
        answer = Counter(answers).most_common(1)[0][0]
        question = user_with('image', image, text(raw_sample, 'question'))
        return [*self.opening(), question, assistant(answer)], {'image': image, 'answers': answers}


@register_template('A-OKVQA')
class AOKVQA(BaseFormatter):
    """Columns `question`, `choices`, `correct_choice_idx`, `rationales`, `image`: the answer with its reasons."""

    def format_supervised_sample(self, raw_sample: Row) -> Sample:
        image, choices = column(raw_sample, 'image'), texts(raw_sample, 'choices')
        index = column(raw_sample, 'correct_choice_idx')
        if str(index) not in map(str, range(len(choices))):
            raise SampleError(f"column 'correct_choice_idx' is {index!r}, but 'choices' has {len(choices)} entries.")
        question = user_with('image', image, f'{text(raw_sample, "question")} Give your reasons.')
        reasons = ' '.join(texts(raw_sample, 'rationales'))
        return [*self.opening(), question, assistant(f'{choices[int(index)]}. {reasons}'.strip())], {'image': image}
