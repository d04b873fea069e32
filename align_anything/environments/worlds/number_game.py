"""A number to guess, by hints of higher and lower."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Any

from align_anything.core.errors import WorldError
from align_anything.environments.base import Environment, Observation, Said, Step, register_environment

RULES = 'I think of a number from {} to {}. Guess it: say one number, and I tell you whether mine is higher or lower.'
GUESS = re.compile(r'-?\d+')


@register_environment('number_game')
class NumberGame(Environment):
    """The policy guesses a number that the seed decides; a right guess is worth 1, less a share for each one before.

    Args:
        low, high: the least and the greatest number.
        guesses: most guesses.
    """

    succeeds = True

    def __init__(self, low: int = 1, high: int = 100, guesses: int = 8) -> None:
        if low >= high or guesses < 1:
            raise WorldError(f'number_game: there is nothing to guess from {low} to {high} in {guesses} guesses.')
        self._low, self._high, self._guesses = low, high, guesses
        self._number, self._made = low, 0

    def reset(self, row: Mapping[str, Any], seed: int) -> Observation:
        """Thinks of a number, and tells the rules."""
        self._number, self._made = random.Random(seed).randint(self._low, self._high), 0
        return Observation(RULES.format(self._low, self._high))

    def step(self, said: Said) -> Step:
        """Tells whether the last number that was said is the right one."""
        self._made += 1
        found = GUESS.findall(said.text)
        guess = int(found[-1]) if found and len(found[-1]) < 20 else None
        if guess == self._number:
            return Step(reward=1 - (self._made - 1) / self._guesses, done=True, info={'success': True})
        if self._made == self._guesses:
            return Step(reward=0.0, done=True, info={'success': False})
        if guess is None:
            return Step(Observation('Say a number.'))
        return Step(Observation('higher' if self._number > guess else 'lower'))
