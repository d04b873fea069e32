"""Example: does the response look like Python code? Nothing in it is run."""

from __future__ import annotations

import re
from collections.abc import Sequence

from align_anything.rewards.base import Completion, register_reward

# Whole statements at the start of a line, since prose has words such as `for` and `if` as well.
STATEMENT = re.compile(
    r'^[ \t]*(?:(?:async )?def \w+\(|class \w+\s*[(:]|import \w[\w.]*(?: as \w+)?$|from [\w.]+ import \w'
    r'|(?:if|for|while) .*:$)|^[ \t]+return\b',
    re.MULTILINE,
)
INDENTED = re.compile(r'^(?: {4}|\t)[ \t]*\S', re.MULTILINE)


@register_reward('example_coding')
def example_coding(completions: Sequence[Completion]) -> list[float]:
    """0.9 for a response with Python statements and indented lines, 0.6 without such lines, 0.3 without statements.

    Shows what a function looks like; to judge whether code is right, run its tests in a sandbox behind a service.
    """
    return [_score(completion.answer) for completion in completions]


def _score(response: str) -> float:
    if not STATEMENT.search(response):
        return 0.3
    return 0.9 if INDENTED.search(response) else 0.6
