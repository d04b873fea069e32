"""PKU-SafeRLHF: two answers to a prompt and which is better."""

from __future__ import annotations

from align_anything.datasets.formatters.base import BaseFormatter
from align_anything.datasets.formatters.columns import Row, chosen_id, is_chosen_id, text
from align_anything.datasets.formatters.turns import PairSample, Sample, assistant, pair, user
from align_anything.datasets.template_registry import register_template


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
