"""The answer is the golden one, letter for letter."""

from __future__ import annotations

import re
from collections.abc import Sequence

from align_anything.rewards.answers import answer_of
from align_anything.rewards.base import Completion, ground_truth, register_reward


@register_reward('exact_match')
def exact_match(
    completions: Sequence[Completion],
    *,
    extract: re.Pattern[str] | None = None,
    ignore_case: bool = True,
    ignore_whitespace: bool = True,
) -> list[float]:
    """1 for an answer that is the same text as `meta['ground_truth']`, 0 for any other.

    Args:
        completions: the responses.
        extract: regular expression that finds the answer in the response: the last match counts, and of it the first
            group, where there is one; a response without a match gets 0. It is used on golden answers that it matches
            as well. By default the answer is what stands in `<answer>…</answer>`, else what follows `</think>`.
        ignore_case: upper and lower case are the same.
        ignore_whitespace: any run of white space counts as one space, none around the answer.
    """

    def normal(text: str) -> str:
        text = ' '.join(text.split()) if ignore_whitespace else text
        return text.casefold() if ignore_case else text

    def reward(completion: Completion) -> float:
        golden = ground_truth(completion)
        if extract is None:
            return float(normal(answer_of(completion.answer)) == normal(golden))
        found = _last(extract, completion.answer)
        wanted = _last(extract, golden)
        return float(found is not None and normal(found) == normal(golden if wanted is None else wanted))

    return [reward(completion) for completion in completions]


def _last(pattern: re.Pattern[str], text: str) -> str | None:
    found = None
    for match in pattern.finditer(text):
        found = match[1] if pattern.groups else match[0]
    return found
