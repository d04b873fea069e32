"""How far a text is from the one that was asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

APOSTROPHE = '\u2019'
MARKS = re.compile(r"[^\w\s']|_")


def edit_distance(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Returns how many insertions, deletions and substitutions turn one sequence into the other (Levenshtein)."""
    row = list(range(len(other) + 1))
    for number, item in enumerate(one, 1):
        diagonal, row[0] = row[0], number
        for place, wanted in enumerate(other, 1):
            diagonal, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, diagonal + (item != wanted))
    return row[-1]


def error_rate(said: Sequence[Any], wanted: Sequence[Any]) -> float:
    """Returns the edit distance as a share of what was wanted, 0 for the same; it may be above 1.

    Of words it is the word error rate. What is said where nothing is wanted is wrong as a whole.
    """
    return edit_distance(said, wanted) / len(wanted) if wanted else float(len(said) > 0)


def plain_words(text: str) -> list[str]:
    """Returns the words of a text in lower case, without punctuation but apostrophes."""
    return MARKS.sub(' ', text.casefold().replace(APOSTROPHE, "'")).split()
