"""A template of one's own, as a user may write it: rows of the template `Preference` for a cost model."""

from __future__ import annotations

from align_anything.datasets.formatters.columns import Row
from align_anything.datasets.formatters.preference import Preference
from align_anything.datasets.formatters.turns import PairSample


class Judged(Preference):
    """What is chosen is safe and what is rejected is not; "better" means, for a cost model, that it costs more."""

    def format_preference_sample(self, raw_sample: Row) -> PairSample:
        chosen, rejected, meta = super().format_preference_sample(raw_sample)
        return rejected, chosen, {**meta, 'is_better_safe': False, 'is_worse_safe': True}
