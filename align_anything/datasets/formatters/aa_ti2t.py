"""align-anything's own datasets about an image, and Janus' use of them."""

from __future__ import annotations

from align_anything.datasets.formatters.base import register_template
from align_anything.datasets.formatters.columns import Row, first_of, text
from align_anything.datasets.formatters.questions import AnsweredOrRanked, MediaQuestion, Refined
from align_anything.datasets.formatters.turns import PairSample, Sample, assistant, pair


@register_template('AA_TI2T')
class AA_TI2T(AnsweredOrRanked):
    """Columns `image`, `question` with `response_1`, `response_2`, `overall_response`; or `prompt` with `response`."""


@register_template('AA_TI2T_LLF')
class AA_TI2T_LLF(Refined):
    """Columns `image`, `prompt`, `response`, `refinement`: the refined answer is preferred to the first one."""


@register_template('Janus_TI2T')
class JanusTI2T(MediaQuestion):
    """Columns `image`, `prompt` with `response`; or `question` with `better_response`, `worse_response`."""

    def format_supervised_sample(self, raw_sample: Row) -> Sample:
        prompt, meta = self.format_prompt_only_sample(raw_sample)
        answer = first_of(raw_sample, ('response', 'better_response'))
        return [*prompt, assistant(text(raw_sample, answer))], meta

    def format_preference_sample(self, raw_sample: Row) -> PairSample:
        prompt, meta = self.format_prompt_only_sample(raw_sample)
        return pair(prompt, text(raw_sample, 'better_response'), text(raw_sample, 'worse_response'), meta)
