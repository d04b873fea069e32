"""The letter of a multiple-choice question."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from align_anything.core.logging import get_logger
from align_anything.rewards.answers import answer_of
from align_anything.rewards.base import Completion, ground_truth, register_reward

logger = get_logger(__name__)

STATED = r'(?i:\banswer|\bchoice|\boption|答案|选)(?i:\s*(?:is|是|为))?[\s:：(（\[]*'
DRESSED = r'\\(?:text|textbf|mathrm|mathbf)\{([^{}]*)\}|[*_$`]+|\\[()\[\]]'
QUOTE = '["\'‘’“”«»「」]'
# An `A` before a word in lower case is no choice, as in `A cat`, unless the word goes on about the choices.
ARTICLE = r'(?!(?<=A) (?!or\b|and\b|is\b)[a-z])'


@register_reward('choice')
def choice(
    completions: Sequence[Completion], *, letters: Annotated[str, Field(pattern='^[A-Z]{2,}$')] = 'ABCD'
) -> list[float]:
    """1 for a response that chooses the letter of `meta['ground_truth']`, 0 for another letter, several or none.

    Read are `C`, `(C)`, `'C'`, `C. Paris`, `**C**`, `\\boxed{C}`, `The answer is C`, in `<answer>…</answer>`, else
    after `</think>`, else in the whole response. A golden answer without a letter gives 0 to all responses.

    Args:
        completions: the responses.
        letters: letters of the choices, upper case.
    """
    rewards = []
    for completion in completions:
        golden = chosen_letter(ground_truth(completion), letters)
        if golden is None:
            logger.warning('the golden answer of %s names none of %s: its reward is 0', completion.source, letters)
        chosen = chosen_letter(answer_of(completion.answer), letters)
        rewards.append(float(golden is not None and chosen == golden))
    return rewards


def chosen_letter(text: str, letters: str) -> str | None:
    """Returns the letter that the text decides for, None when there is none or more than one.

    The first form that the text has decides: a letter and nothing else, boxed, after the word `answer` (the last one),
    at the start of a line, in brackets, in bold, and at last standing alone anywhere.
    """
    plain = re.sub(DRESSED, lambda found: found[1] or '', text).strip()
    plain = re.sub(rf'(?<![A-Za-z0-9]){QUOTE}([{letters}]){QUOTE}(?![A-Za-z0-9])', r'\1', plain, flags=re.IGNORECASE)
    match = re.fullmatch(rf'\(?([{letters}])[).:]*', plain, re.IGNORECASE)
    if match:
        return match[1].upper()
    boxed = re.findall(r'\\boxed\{([^{}]*)\}', plain)
    if boxed:
        return chosen_letter(boxed[-1], letters)
    letter = rf"(?<![A-Za-z0-9'’])([{letters}])(?![A-Za-z0-9'’])"
    stated = list(re.finditer(STATED + letter, plain))
    if stated:
        listed = re.match(rf'\W*(?:[/,&]|\b(?:or|and)\b)\W*{letter}', plain[stated[-1].end() :])
        return None if listed else stated[-1][1]
    for pattern, where in (
        (rf'(?m)^\s*([{letters}])(?:[).:](?!\S)|\s*$)', plain),
        (rf'\(([{letters}])\)', plain),
        (rf'\*\*([{letters}])[).:]*\*\*', text),
        (letter + ARTICLE, plain),
    ):
        found = set(re.findall(pattern, where))
        if found:
            return found.pop() if len(found) == 1 else None
    return None
