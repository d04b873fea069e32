"""Safe RLHF-V: two answers about an image, ranked by helpfulness and by safety."""

from __future__ import annotations

from align_anything.datasets.formatters.base import register_template
from align_anything.datasets.formatters.columns import Row, chosen_id, column, number, text
from align_anything.datasets.formatters.questions import AnsweredOrRanked
from align_anything.datasets.formatters.turns import PairSample, Sample, assistant, pair


@register_template('SafeRLHF_V_Reward')
class SafeRLHFVReward(AnsweredOrRanked):
    """Columns `image`, `question`, `response_1`, `response_2`, `more_helpful_response_id`; or `prompt`, `response`."""

    _preference = 'more_helpful_response_id'


@register_template('SafeRLHF_V_Cost')
class SafeRLHFVCost(AnsweredOrRanked):
    """Columns `image`, `question`, `response_1`, `response_2`, `safer_response_id`, `response_{1,2}_harmless_rate`.

    For a cost model "better" means that it must score higher, so the better answer is the less safe one.
    `meta['is_better_safe']` and `meta['is_worse_safe']` tell for either answer whether it is safe: rated above 0.
    """

    _preference = 'safer_response_id'

    def format_supervised_sample(self, raw_sample: Row) -> Sample:
        if 'response' in raw_sample:
            return super().format_supervised_sample(raw_sample)
        # Trained to say, not to judge: here the safer answer is the one to learn.
        safer = chosen_id(raw_sample, self._preference, (1, 2))
        prompt, meta = self.format_prompt_only_sample(raw_sample)
        return [*prompt, assistant(text(raw_sample, f'response_{safer}'))], meta

    def format_preference_sample(self, raw_sample: Row) -> PairSample:
        safer = chosen_id(raw_sample, self._preference, (1, 2))
        costly = 3 - safer
        prompt, meta = self.format_prompt_only_sample(raw_sample)
        safety = {'is_better_safe': _is_safe(raw_sample, costly), 'is_worse_safe': _is_safe(raw_sample, safer)}
        better, worse = text(raw_sample, f'response_{costly}'), text(raw_sample, f'response_{safer}')
        return pair(prompt, better, worse, {**meta, **safety})


def _is_safe(row: Row, response: int) -> bool:
    name = f'response_{response}_harmless_rate'
    return number(column(row, name), f"column '{name}'") > 0
