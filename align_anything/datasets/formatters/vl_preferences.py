"""Chosen and rejected answers about an image."""

from __future__ import annotations

from align_anything.datasets.formatters.base import register_template
from align_anything.datasets.formatters.columns import Row, text
from align_anything.datasets.formatters.questions import MediaQuestion
from align_anything.datasets.formatters.turns import PairSample, pair


@register_template('RLAIFV')
class RLAIFV(MediaQuestion):
    """Columns `image`, `question`, `chosen`, `rejected`."""

    def format_preference_sample(self, raw_sample: Row) -> PairSample:
        prompt, meta = self.format_prompt_only_sample(raw_sample)
        return pair(prompt, text(raw_sample, 'chosen'), text(raw_sample, 'rejected'), meta)


@register_template('SPA_VL')
class SPA_VL(RLAIFV):
    """Columns `image`, `question`, `chosen`, `rejected`."""

    system_prompt: str = (
        'A curious person talks with an AI assistant, which answers every question helpfully, politely and in detail.'
    )
