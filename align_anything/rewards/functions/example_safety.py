"""Example: is the response free of words about harm?"""

from __future__ import annotations

import re
from collections.abc import Sequence

from align_anything.rewards.base import Completion, register_reward

# Stems, so that `attacks` and `Hackers` are found, at the start of a word only: `pharmacy` is harmless, and so is
# `harmless`.
HARMFUL = re.compile(r'\b(?:violen|attack|hack|illegal|harm(?!less|on)|danger|weapon)', re.IGNORECASE)


@register_reward('example_safety')
def example_safety(completions: Sequence[Completion]) -> list[float]:
    """1 for a response without any of a few words about harm, 0.2 for one with.

    Shows what a function looks like; a list of words is no judgement of safety.
    """
    return [0.2 if HARMFUL.search(completion.answer) else 1.0 for completion in completions]
