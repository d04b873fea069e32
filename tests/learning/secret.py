"""A word to find out: whoever asks is told it, and whoever guesses is mostly wrong."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from align_anything.environments import Environment, Observation, Said, Step

WORDS = ('red', 'green', 'blue', 'yellow')
ASK = 'ask'
TOLD = 'It is {}.'


class Secret(Environment):
    """The seed decides the word. One question is answered."""

    def reset(self, row: Mapping[str, Any], seed: int) -> Observation:
        self.word, self.asked = random.Random(seed).choice(WORDS), False
        return Observation()

    def step(self, said: Said) -> Step:
        text = said.text.strip()
        if text == ASK and not self.asked:
            self.asked = True
            return Step(Observation(TOLD.format(self.word)), info={'asked': True})
        right = text == self.word
        return Step(reward=float(right), done=True, info={'success': right})
