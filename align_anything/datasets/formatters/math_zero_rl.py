"""Mathematics with the reasoning and the answer marked, as rule-based rewards read them."""

from __future__ import annotations

from align_anything.datasets.formatters.base import BaseFormatter, register_template
from align_anything.datasets.formatters.columns import Row, filled, first_of, text
from align_anything.datasets.formatters.turns import Sample, assistant, user


@register_template('Math-Zero-RL')
class MathZeroRL(BaseFormatter):
    """Columns `prompt` or `question`, and `answer`, which a prompt-only sample carries as `meta['ground_truth']`."""

    system_prompt: str = (
        'You solve mathematical problems step by step. First reason inside <think> </think>, then give the result '
        'inside <answer> </answer>, written in LaTeX between dollar signs. For example: '
        '<think> Adding one and one gives $1+1=2$. </think><answer> $2$ </answer>. '
        'Begin with <think> and stop after </answer>.'
    )

    def format_supervised_sample(self, raw_sample: Row) -> Sample:
        prompt, _ = self.format_prompt_only_sample(raw_sample)
        return [*prompt, assistant(text(raw_sample, 'answer'))], {}

    def format_prompt_only_sample(self, raw_sample: Row) -> Sample:
        prompt = text(raw_sample, first_of(raw_sample, ('prompt', 'question')))
        meta = {'ground_truth': text(raw_sample, 'answer')} if filled(raw_sample, 'answer') else {}
        return [*self.opening(), user(prompt)], meta
