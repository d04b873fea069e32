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
    """As many `lights`; a wrong step ends the episode. Each right one is worth its share of 1."""

    actions = ActionSpace(names=ACTIONS)

    def __init__(self, lights: int = 3) -> None:
        self.lights = lights

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
        """An episode in which all is right."""
        messages = list(self.reset({}, seed).messages)
        for left in reversed(range(self.lights)):
            messages.append({'role': 'assistant', 'content': [{'type': 'action', 'action': self.right}]})
            self.passed += 1
            messages += [self.shown([])] if left else []
        return messages, {'seed': seed}
