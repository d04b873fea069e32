"""Reasoning and answer in their tags."""

from __future__ import annotations

import re
from collections.abc import Sequence

from align_anything.rewards.base import Completion, register_reward

TAGS = ('<think>', '</think>', '<answer>', '</answer>')
WHOLE = re.compile(r'\s*<think>(.*)</think>\s*<answer>(.*)</answer>\s*', re.DOTALL)


@register_reward('format')
def format_reward(completions: Sequence[Completion]) -> list[float]:
    """1 for a response that is `<think>…</think><answer>…</answer>` and nothing else, 0 for any other.

    White space may stand around the two sections, each tag stands once, and neither section is blank.
    """
    return [float(_well_formed(completion.answer)) for completion in completions]


def _well_formed(response: str) -> bool:
    sections = WHOLE.fullmatch(response)
    return (
        sections is not None
        and all(response.count(tag) == 1 for tag in TAGS)
        and all(section.strip() for section in sections.groups())
    )
