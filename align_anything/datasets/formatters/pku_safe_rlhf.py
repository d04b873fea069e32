"""PKU-SafeRLHF: two answers to a prompt, which is better, and which is safer."""

from __future__ import annotations

from align_anything.datasets.formatters.base import BaseFormatter, register_template
from align_anything.datasets.formatters.columns import Row, chosen_id, column, is_chosen_id, text, truth
from align_anything.datasets.formatters.turns import PairSample, Sample, assistant, pair, user


@register_template('PKUSafeRLHF')
class PKUSafeRLHF(BaseFormatter):
    """Columns `prompt`, `response_0`, `response_1`, `better_response_id` (0 or 1)."""

    def format_preference_sample(self, raw_sample: Row) -> PairSample:
        better = chosen_id(raw_sample, 'better_response_id', (0, 1))
        prompt, _ = self.format_prompt_only_sample(raw_sample)
        return pair(prompt, text(raw_sample, f'response_{better}'), text(raw_sample, f'response_{1 - better}'), {})

    def format_prompt_only_sample(self, raw_sample: Row) -> Sample:
        return [*self.opening(), user(text(raw_sample, 'prompt'))], {}

    def format_unmatched_supervised_sample(self, raw_sample_for_prompt: Row, raw_sample_for_response: Row) -> Sample:
        prompt, meta = self.format_prompt_only_sample(raw_sample_for_prompt)
        return [*prompt, assistant(text(raw_sample_for_response, 'response_1'))], meta

    def check_validation(self, raw_sample: Row) -> bool:
        return is_chosen_id(raw_sample, 'better_response_id', (0, 1))


@register_template('PKUSafeRLHF_Cost')
class PKUSafeRLHFCost(PKUSafeRLHF):
    """Columns `prompt`, `response_0`, `response_1`, `safer_response_id`, `is_response_0_safe`, `is_response_1_safe`.

    For a cost model "better" means that it must score higher, so the better answer is the less safe one.
    """

    def format_supervised_sample(self, raw_sample: Row) -> Sample:
        # Trained to say, not to judge: here the safer answer is the one to learn.
        safer = chosen_id(raw_sample, 'safer_response_id', (0, 1))
        prompt, meta = self.format_prompt_only_sample(raw_sample)
        return [*prompt, assistant(text(raw_sample, f'response_{safer}'))], meta

    def format_preference_sample(self, raw_sample: Row) -> PairSample:
        safer = chosen_id(raw_sample, 'safer_response_id', (0, 1))
        costly = 1 - safer
        prompt, _ = self.format_prompt_only_sample(raw_sample)
        safety = {
            'is_better_safe': _is_safe(raw_sample, costly),
            'is_worse_safe': _is_safe(raw_sample, safer),
        }
        return pair(prompt, text(raw_sample, f'response_{costly}'), text(raw_sample, f'response_{safer}'), safety)

    def check_validation(self, raw_sample: Row) -> bool:
        return is_chosen_id(raw_sample, 'safer_response_id', (0, 1))


def _is_safe(row: Row, response: int) -> bool:
    name = f'is_response_{response}_safe'
    return truth(column(row, name), f"column '{name}'")
