"""Sums too many to know by heart: whoever asks a calculator is told what they come to, and who guesses is mostly wrong.

What is written has as few tokens as can be: tokenizers have a token for each digit.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Any

from align_anything.environments import Environment, Observation, Said, Step

CALL = '='
LOWEST, HIGHEST = 2, 9
EXPRESSION = re.compile(r'(\d+)([+*])(\d+)')


def problem(chance: random.Random) -> str:
    """A sum or a product."""
    return f'{chance.randint(LOWEST, HIGHEST)}{chance.choice("+*")}{chance.randint(LOWEST, HIGHEST)}'


def computed(expression: str) -> str:
    """What an expression comes to; a question mark of what is none."""
    found = EXPRESSION.fullmatch(expression)
    if found is None:
        return '?'
    first, second = int(found[1]), int(found[3])
    return str(first + second if found[2] == '+' else first * second)


class Sums(Environment):
    """The row asks what an expression comes to. One call is answered."""

    def reset(self, row: Mapping[str, Any], seed: int) -> Observation:
        self.wanted, self.called = computed(row['messages'][-1]['content'][0]['text']), False
        return Observation()

    def step(self, said: Said) -> Step:
        text = said.text.strip()
        if text.startswith(CALL) and not self.called:
            self.called = True
            return Step(Observation(computed(text.removeprefix(CALL))), info={'asked': True})
        return Step(reward=float(text == self.wanted), done=True, info={'success': text == self.wanted})
