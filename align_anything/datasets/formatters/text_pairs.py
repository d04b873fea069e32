"""Datasets whose rows are one question and one answer in text."""

from __future__ import annotations

from align_anything.datasets.formatters.base import BaseFormatter, register_template
from align_anything.datasets.formatters.columns import Row, text
from align_anything.datasets.formatters.turns import Sample, assistant, user


@register_template('AA_T2T')
class AA_T2T(BaseFormatter):
    """Columns `prompt`, `response`."""

    def format_supervised_sample(self, raw_sample: Row) -> Sample:
        return [*self.opening(), user(text(raw_sample, 'prompt')), assistant(text(raw_sample, 'response'))], {}


@register_template('GSM8K')
class GSM8K(BaseFormatter):
    """Columns `question`, `answer`."""

    def format_supervised_sample(self, raw_sample: Row) -> Sample:
        return [*self.opening(), user(text(raw_sample, 'question')), assistant(text(raw_sample, 'answer'))], {}


@register_template('Aligner')
class Aligner(BaseFormatter):
    """Columns `question`, `answer`, `correction`: the model learns to correct an answer that it is shown."""

    def format_supervised_sample(self, raw_sample: Row) -> Sample:
        prompt = f'##QUESTION: {text(raw_sample, "question")} ##ANSWER: {text(raw_sample, "answer")}'
        correction = f'##CORRECTION: {text(raw_sample, "correction")}'
        return [*self.opening(), user(prompt), assistant(correction)], {}
