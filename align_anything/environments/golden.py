"""Answers that the row knows, and tools to come to them with."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from align_anything.environments.base import Observation
from align_anything.environments.tools import FunctionTools, Tool

WORD = re.compile(r'\w+')
NUMBER = re.compile(r'[-+]?\d[\d,]*(?:\.\d+)?')


class GoldenNumber(FunctionTools):
    """Functions to call, and a reward of 1 for an answer whose last number is the golden one of the row.

    That is in its `ground_truth`. Without a golden answer nothing is rewarded.
    """

    rewards = True

    def __init__(self, functions: Sequence[Tool]) -> None:
        super().__init__(functions)
        self._wanted: float | None = None

    def reset(self, row: Mapping[str, Any], seed: int) -> Observation:
        """Remembers the golden answer of the row."""
        self._wanted = last_number(str(row.get('ground_truth', '')))
        self.succeeds = self._wanted is not None
        return Observation()

    def judged(self, answer: str) -> tuple[float | None, Mapping[str, Any]]:
        """As `FunctionTools.judged`."""
        if self._wanted is None:
            return None, {}
        right = last_number(answer) == self._wanted
        return float(right), {'success': right}


def is_golden(answer: str, golden: str) -> bool:
    """Tells whether an answer ends with the golden one: with its number if it is one, else with its words."""
    if NUMBER.fullmatch(golden.strip()):
        return last_number(answer) == last_number(golden)
    wanted, said = (WORD.findall(text.lower()) for text in (golden, answer))
    return bool(wanted) and said[-len(wanted) :] == wanted


def last_number(text: str) -> float | None:
    """Returns the last number in a text, None where there is none."""
    found = NUMBER.findall(text)
    return float(found[-1].replace(',', '')) if found else None
