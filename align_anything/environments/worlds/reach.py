"""A point on a table that moves to a target in the picture, by numbers: the smallest world of continuous actions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy
import torch
from PIL import Image, ImageDraw

from align_anything.core.actions import Actions, ActionSpace
from align_anything.core.errors import WorldError
from align_anything.core.types import Message
from align_anything.environments.base import (
    SEED,
    Environment,
    Observation,
    Said,
    Step,
    register_environment,
    seed_of_row,
)

INSTRUCTION = 'move to the red disc'
EDGE = 0.15
"""How far from the edge of the table the zone ends that should not be left; all begins and all targets are inside."""
FARTHEST = 0.1
"""How far a step goes at most in each direction, of a table of side 1."""


@register_environment('reach')
class Reach(Environment):
    """A point moves by `dx` and `dy`, of a table of side 1, at most 0.1 each, until it is near the red disc.

    That is worth 1, less up to a half for the steps it took. Each step that ends near the edge of the table costs 1,
    and none leads off the table. The picture shows the disc and, small and blue, the point, whose position is the
    state.

    Args:
        radius: how near it has to come.
        steps: most steps of an episode.
        side: pixels of a side of the picture.
    """

    succeeds = True
    actions = ActionSpace(dimensions=('dx', 'dy'), normalization='mean_std', cameras=('top',), chunk=4, executed=4)

    def __init__(self, radius: float = 0.08, steps: int = 16, side: int = 56) -> None:
        if not 0 < radius < 0.5 or steps < 1 or side < 8:
            raise WorldError(f'reach: no table of {side} pixels has a target of radius {radius:g} and {steps} steps.')
        self._radius, self._steps, self._side, self._taken = radius, steps, side, 0
        self._point, self._target = numpy.zeros(2), numpy.zeros(2)

    def reset(self, row: Mapping[str, Any], seed: int) -> Observation:
        """Lays point and target where the seed says, or the row's own `seed`."""
        random = numpy.random.default_rng(seed_of_row(row, seed))
        self._taken = 0
        self._point, self._target = random.uniform(EDGE, 1 - EDGE, (2, 2))
        said = any(part['type'] == 'text' for message in row.get('messages', ()) for part in message['content'])
        return Observation([self._shown('' if said else INSTRUCTION)])

    def step(self, said: Said) -> Step:
        """Does the steps that were said, as far as the episode goes on."""
        if said.actions is None or said.actions.values is None:
            return Step(None, 0.0, done=True, info={'success': False})
        outside = 0
        for move in said.actions.values.numpy():
            self._taken += 1
            self._point = (self._point + move.clip(-FARTHEST, FARTHEST)).clip(0, 1)
            outside += bool((abs(self._point - 0.5) > 0.5 - EDGE).any())
            success = bool(numpy.linalg.norm(self._point - self._target) < self._radius)
            if success or self._taken >= self._steps:
                reward = 1 - self._taken / (2 * self._steps) if success else 0.0
                return Step(None, reward, {'outside': float(outside)}, done=True, info={'success': success})
        return Step(Observation([self._shown()]), costs={'outside': float(outside)})

    def demonstration(self, seed: int) -> tuple[list[Message], dict[str, Any]]:
        """Returns an episode that goes straight to the target, a step in each turn, with what came of it."""
        (shown,) = self.reset({}, seed).messages
        messages, cost, success = [shown], 0.0, False
        random = numpy.random.default_rng(seed)
        while not success:
            move = (self._target - self._point).clip(-FARTHEST, FARTHEST) + random.normal(0, FARTHEST / 10, 2)
            said = Actions(torch.tensor(move[None]))
            messages.append({'role': 'assistant', 'content': [{'type': 'action', 'action': said.values.tolist()}]})
            step = self.step(Said('', actions=said))
            cost, success = cost + sum(step.costs.values()), bool(step.info.get('success'))
            if step.done:
                break
            messages += step.observation.messages
        return messages, {SEED: seed, 'success': success, 'cost': cost}

    def _shown(self, instruction: str = '') -> Message:
        words = [{'type': 'text', 'text': instruction}] if instruction else []
        picture = Image.new('RGB', (self._side, self._side), 'gray')
        drawing = ImageDraw.Draw(picture)
        for centre, radius, colour in ((self._target, self._radius, 'red'), (self._point, 0.03, 'blue')):
            drawing.ellipse([*self._pixels(centre - radius), *self._pixels(centre + radius)], fill=colour)
        return {
            'role': 'user',
            'content': [*words, {'type': 'image', 'image': picture}],
            'state': {'position': self._point.tolist()},
        }

    def _pixels(self, position: Sequence[float]) -> list[float]:
        return [float(value) * (self._side - 1) for value in position]
