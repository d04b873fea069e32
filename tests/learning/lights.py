"""A road with lights: where they are green one turns as the mission says, where they are red one waits."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from PIL import Image

from align_anything.core.actions import ActionSpace
from align_anything.core.types import Message
from align_anything.environments import Environment, Observation, Said, Step

ACTIONS = ('left', 'right', 'wait')
MISSIONS = {f'turn {side}': side for side in ('left', 'right')}
SIDE = 56


class Lights(Environment):
    """As many `lights`; a wrong step ends the episode. Each right one is worth its share of 1.

    Who shows how to drive does `errs` of the steps by chance.
    """

    actions = ActionSpace(names=ACTIONS)

    def __init__(self, lights: int = 3, errs: float = 0.0) -> None:
        self.lights, self.errs = lights, errs

    def reset(self, row: Mapping[str, Any], seed: int) -> Observation:
        """Chooses what the mission is, and the lights of the whole road."""
        chance = random.Random(seed)
        self.mission, self.passed = chance.choice([*MISSIONS]), 0
        self.green = [chance.random() < 0.5 for _ in range(self.lights)]
        return Observation([self.shown([{'type': 'text', 'text': self.mission}])])

    @property
    def right(self) -> str:
        """What is to be done now."""
        return MISSIONS[self.mission] if self.green[self.passed] else 'wait'

    def shown(self, words: list[dict[str, Any]]) -> Message:
        """The light that one stands before."""
        light = Image.new('RGB', (SIDE, SIDE), 'green' if self.green[self.passed] else 'red')
        return {'role': 'user', 'content': [*words, {'type': 'image', 'image': light}]}

    def step(self, said: Said) -> Step:
        """Goes on to the next light, if that was right."""
        right = said.actions is not None and said.actions.names == (self.right,)
        self.passed += right
        done = not right or self.passed == self.lights
        shown = None if done else Observation([self.shown([])])
        return Step(shown, right / self.lights, done=done, info={'success': self.passed == self.lights})

    def demonstration(self, seed: int) -> tuple[list[Message], dict[str, Any]]:
        """An episode in which all is right, but for a share of steps that are done by chance."""
        messages, chance = list(self.reset({}, seed).messages), random.Random(seed)
        while True:
            done = chance.choice(ACTIONS) if chance.random() < self.errs else self.right
            messages.append({'role': 'assistant', 'content': [{'type': 'action', 'action': done}]})
            errs, self.passed = done != self.right, self.passed + 1
            if errs or self.passed == self.lights:
                return messages, {'seed': seed}
            messages.append(self.shown([]))
