"""Families that act, and episodes of theirs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from align_anything.core.actions import Actions, ActionSpace, Statistics
from align_anything.core.types import Conversation, Message
from align_anything.models.action_codes import at_the_tail
from align_anything.models.action_space import act_in
from align_anything.models.family import FamilySpec
from tests.models.samples import load, picture, user

NAMED = ActionSpace(names=('left', 'right', 'forward'), tokens='tail')
ARM = ActionSpace(
    dimensions=('x', 'y', 'gripper'),
    bins=8,
    statistics={
        'kitchen': Statistics((-2.0, 0.0, 0.0), (2.0, 10.0, 1.0), (0, 5, 0.5), (1, 2, 0.5), (True, True, False))
    },
    chunk=2,
    executed=2,
    tokens='tail',
)
OPENVLA = replace(ARM, binning='openvla')


def acting(tiny: Callable[..., Path], family: str, space: ActionSpace, restricted: bool = True) -> FamilySpec:
    """The spec of a tiny model that acts by the tail of its vocabulary, as runs have it."""
    spec = load(tiny(family))
    act_in(spec, at_the_tail(space, spec.tokenizer))
    spec.codes = replace(spec.codes, begins=True, restricted=restricted)
    return spec


def acted(*steps: str | list[float]) -> Message:
    """A turn that does named steps, or steps of numbers."""
    if isinstance(steps[0], str):
        actions = Actions(names=steps)
    else:
        actions = Actions(torch.tensor(steps, dtype=torch.float64))
    return {'role': 'assistant', 'content': [{'type': 'action', 'action': actions}]}


def seen(*words: str) -> Message:
    """What is shown in a step."""
    return user(*words, picture(56, 56))


def episode(*turns: Message) -> Conversation:
    """An episode of these turns of the policy."""
    shown = [seen('go there'), *(seen() for _ in turns[1:])]
    return [message for pair in zip(shown, turns, strict=True) for message in pair]
