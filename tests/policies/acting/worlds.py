"""A world to act in that needs nothing installed: a dot on a line, and what it is to reach."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image

from align_anything.core.actions import Actions, ActionSpace
from align_anything.core.types import Conversation
from align_anything.environments import Environment, Observation, Said, Step
from align_anything.models.acting.checkpoint import load_acting, load_action_spec
from align_anything.models.acting.spec import ActionSpec
from align_anything.policies.acting.collator import ActionCollator
from align_anything.policies.acting.heads import make_head
from align_anything.policies.acting.policy import ActionPolicy
from align_anything.testing.acting import build_acting

NAMES = ('left', 'right', 'wait')
NAMED = ActionSpace(names=NAMES, cameras=('above',))
NUMBERS = ActionSpace(dimensions=('x', 'y'), chunk=3, executed=2, normalization='identity', cameras=('above',))
WORDS = ('go', 'to', 'the', 'left', 'right')
PIXELS = (16, 16)
SMALL: dict[str, Any] = {
    'words': WORDS,
    'image_size': PIXELS,
    'patch_size': 4,
    'channels': 8,
    'hidden_size': 32,
    'decoder_size': 48,
    'fusion_size': 32,
    'max_steps': 64,
}


class Line(Environment):
    """A dot on a line of seven, which is to be moved to an end; each step onto a hot place costs 1.

    It takes as many steps as the seed says at most, or the `limit` of the row, so that episodes differ in length.
    """

    actions = NAMED

    def __init__(self, breaks: int = 0) -> None:
        self.breaks = breaks

    def reset(self, row: Mapping[str, Any], seed: int) -> Observation:
        self.place, self.taken, self.limit, self.hot = 3, 0, row.get('limit', 3 + seed % 4), 2 * (seed % 2) + 2
        self.goal = 0 if seed % 3 else 6
        said = any(part['type'] == 'text' for message in row['messages'] for part in message['content'])
        return Observation([self.shown('' if said else f'go to the {"right" if self.goal else "left"}')])

    def shown(self, words: str = '') -> dict[str, Any]:
        texts = [{'type': 'text', 'text': words}] if words else []
        return {'role': 'user', 'content': [*texts, {'type': 'image', 'image': picture(self.place, self.hot)}]}

    def step(self, said: Said) -> Step:
        assert said.actions is not None
        moved = [NAMES.index(name) for name in said.actions.names]
        moved += [] if said.actions.values is None else [int(x > 0) for x in said.actions.values[:, 0].tolist()]
        for number in moved:
            self.taken += 1
            self.place = min(6, max(0, self.place + (-1, 1, 0)[number]))
        if self.breaks and (self.place + self.taken) % self.breaks == 0:
            raise OSError('it broke')
        reached = self.place == self.goal
        return Step(
            Observation([self.shown()]),
            reward=float(reached),
            costs={'hot': float(self.place == self.hot)},
            done=reached or self.taken >= self.limit,
            info={'success': reached},
        )


class Pushed(Line):
    """The same by numbers."""

    actions = NUMBERS


def picture(place: int, hot: int) -> Image.Image:
    """What is seen of a place: a white square, beside a red one that is hot."""
    pixels = numpy.zeros((*PIXELS, 3), numpy.uint8)
    pixels[:8, 2 * hot : 2 * hot + 2, 0] = 255
    pixels[8:, 2 * place : 2 * place + 2] = 255
    return Image.fromarray(pixels)


def episode(steps: int, space: ActionSpace = NAMED, seed: int = 0, chunk: int | None = None) -> Conversation:
    """A conversation of so many turns, of numbers each a chunk."""
    generator = torch.Generator().manual_seed(seed)
    turns: Conversation = []
    for step in range(steps):
        texts = [] if step else [{'type': 'text', 'text': 'go to the left'}]
        seen = {'type': 'image', 'image': picture((seed + step) % 7, step % 5)}
        if space.names:
            done = Actions(names=(NAMES[int(torch.randint(3, (), generator=generator))],))
        else:
            done = Actions(torch.randn(chunk or space.chunk, 2, generator=generator).double())
        turns += [
            {'role': 'user', 'content': [*texts, seen]},
            {'role': 'assistant', 'content': [{'type': 'action', 'action': done}]},
        ]
    return turns


def small(folder: Path, space: ActionSpace = NAMED, **config: Any) -> Path:
    """A small checkpoint in a new folder."""
    return build_acting(folder, space, **{**SMALL, **config})


def policy_in(folder: Path, mean: bool = False) -> tuple[ActionPolicy, ActionSpec]:
    """The policy of a checkpoint."""
    spec = load_action_spec(folder)
    collate = ActionCollator(spec, make_head(spec.config.head, mean))
    return ActionPolicy(load_acting(folder, torch.float32), collate, dtype=torch.float32), spec
