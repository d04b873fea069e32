"""The response matches a pattern."""

from __future__ import annotations

import re
from collections.abc import Sequence

from align_anything.rewards.base import Completion, register_reward


@register_reward('regex')
def regex(completions: Sequence[Completion], *, pattern: re.Pattern[str]) -> list[float]:
    """1 for a response in which the regular expression is found, 0 for any other.

    Args:
        completions: the responses.
        pattern: regular expression; `\\A` and `\\Z` tie it to the ends of the response.
    """
    return [float(pattern.search(completion.answer) is not None) for completion in completions]
