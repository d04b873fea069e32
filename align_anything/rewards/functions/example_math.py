"""Example: does the response look like mathematics?"""

from __future__ import annotations

from collections.abc import Sequence

from align_anything.rewards.base import Completion, register_reward

SYMBOLS = '+-*/=<>'


@register_reward('example_math')
def example_math(completions: Sequence[Completion]) -> list[float]:
    """0.8 for a response with a digit and one of `+-*/=<>`, else 0.2.

    Shows what a function looks like; to judge whether an answer is right, use `math`. Tags do not count as symbols.
    """
    return [0.8 if _looks_mathematical(completion.answer) else 0.2 for completion in completions]


def _looks_mathematical(response: str) -> bool:
    for tag in ('<think>', '</think>', '<answer>', '</answer>'):
        response = response.replace(tag, ' ')
    return any(character.isdigit() for character in response) and any(symbol in response for symbol in SYMBOLS)
