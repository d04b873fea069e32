"""Accuracy of the answer, and half a point for its form."""

from __future__ import annotations

from collections.abc import Sequence

from align_anything.rewards.base import Completion, register_reward
from align_anything.rewards.functions.format import format_reward
from align_anything.rewards.functions.math import math


@register_reward('math_verifier', needs={'math_verify': 'math'})
def math_verifier(completions: Sequence[Completion]) -> list[float]:
    """`0.5 * format + math`: 1.5 for a right answer in the tags, 1 for one without them, 0.5 for a wrong one in them.

    Raises `RewardError` as `math` does.
    """
    forms, accuracies = format_reward(completions), math(completions)
    return [0.5 * form + accuracy for form, accuracy in zip(forms, accuracies, strict=True)]
