"""Instructions with an optional input, in the columns of the Alpaca dataset."""

from __future__ import annotations

from align_anything.datasets.formatters.base import BaseFormatter, register_template
from align_anything.datasets.formatters.columns import Row, filled, text
from align_anything.datasets.formatters.turns import Sample, assistant, user


@register_template('Alpaca')
class Alpaca(BaseFormatter):
    """Columns `instruction`, `input` (may be empty), `output`."""

    def format_supervised_sample(self, raw_sample: Row) -> Sample:
        prompt = text(raw_sample, 'instruction')
        if filled(raw_sample, 'input') and text(raw_sample, 'input'):
            prompt = f'{prompt} {text(raw_sample, "input")}'
        return [*self.opening(), user(prompt), assistant(text(raw_sample, 'output'))], {}
