"""align-anything's own datasets about an image, and Janus' use of them."""

from __future__ import annotations

from align_anything.datasets.formatters.base import BaseFormatter
from align_anything.datasets.formatters.columns import Row, chosen_id, column, first_of, is_chosen_id, text
from align_anything.datasets.formatters.turns import PairSample, Sample, assistant, pair, user_with_image
from align_anything.datasets.template_registry import register_template


class ImageQuestion(BaseFormatter):
    """Rows with an `image` and a question about it in column `question` or `prompt`."""

    def format_prompt_only_sample(self, raw_sample: Row) -> Sample:
        image = column(raw_sample, 'image')
        question = text(raw_sample, first_of(raw_sample, ('question', 'prompt')))
        return [*self.opening(), user_with_image(question, image)], {'image': image}


class AnsweredOrRanked(ImageQuestion):
    """Image questions with an answer in column `response`, or with two of which one is marked as preferred.

    Attributes:
        _preference: the column that names the preferred answer, 1 or 2.
    """

    _preference: str

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


@register_template('AA_TI2T')
class AA_TI2T(AnsweredOrRanked):
    """Columns `image`, `question` with `response_1`, `response_2`, `overall_response`; or `prompt` with `response`."""

    _preference = 'overall_response'


@register_template('AA_TI2T_LLF')
class AA_TI2T_LLF(ImageQuestion):
    """Columns `image`, `prompt`, `response`, `refinement`: the refined answer is preferred to the first one."""

    def format_preference_sample(self, raw_sample: Row) -> PairSample:
        prompt, meta = self.format_prompt_only_sample(raw_sample)
        return pair(prompt, text(raw_sample, 'refinement'), text(raw_sample, 'response'), meta)


@register_template('Janus_TI2T')
class JanusTI2T(ImageQuestion):
    """Columns `image`, `prompt` with `response`; or `question` with `better_response`, `worse_response`."""

    def format_supervised_sample(self, raw_sample: Row) -> Sample:
        prompt, meta = self.format_prompt_only_sample(raw_sample)
        answer = first_of(raw_sample, ('response', 'better_response'))
        return [*prompt, assistant(text(raw_sample, answer))], meta

    def format_preference_sample(self, raw_sample: Row) -> PairSample:
        prompt, meta = self.format_prompt_only_sample(raw_sample)
        return pair(prompt, text(raw_sample, 'better_response'), text(raw_sample, 'worse_response'), meta)
