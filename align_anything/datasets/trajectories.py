"""Recorded episodes: what a body saw, what it did, what came of it, and the conversation that this is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from align_anything.core.actions import Actions
from align_anything.core.errors import SampleError
from align_anything.core.types import ACTION, Media
from align_anything.datasets.formatters.turns import Meta, Turns

PER_STEP = ('rewards', 'costs')
"""What `meta` may hold with one value for each step, so that a window has its own of them."""


@dataclass(frozen=True)
class Trajectory:
    """An episode as it was recorded.

    Attributes:
        instruction: what was to be done.
        pictures: of each camera what was seen before each step: sources of images, or frames of files as `is_frame`
            says. The cameras stand in the order in which a policy sees them.
        actions: what was done in each step.
        state: of the body before each step, `(steps, numbers)` by name.
        rewards: that followed each step; empty where none were recorded.
        costs: that each step caused; empty where none were recorded.
        success: whether it was done in the end; None where nobody said.
        picture_options: options of the decoding of all pictures, such as `{'rotate': 180}`.
        told: what else `meta` says of it, such as the `dimensions` of its actions by name.
    """

    instruction: str
    pictures: Mapping[str, Sequence[Any]]
    actions: Actions
    state: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)
    rewards: Sequence[float] = ()
    costs: Sequence[float] = ()
    success: bool | None = None
    picture_options: Mapping[str, Any] = field(default_factory=dict)
    told: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.actions)

    def require_even(self) -> None:
        """Raises SampleError where pictures, states or rewards are not one for each action."""
        counted = {
            **{f"pictures of '{name}'": len(frames) for name, frames in self.pictures.items()},
            **{f"states of '{name}'": len(values) for name, values in self.state.items()},
            **{name: len(getattr(self, name)) for name in PER_STEP if len(getattr(self, name))},
        }
        wrong = [f'{count} {name}' for name, count in counted.items() if count != len(self)]
        if wrong:
            raise SampleError(
                f'the episode has {len(self)} actions, but {" and ".join(wrong)}. There should be one of each before '
                'every action, and none after the last: an action too many or too few shifts all that follow.'
            )
        if not len(self):
            raise SampleError('the episode has no actions.')


def turns_of(trajectory: Trajectory) -> tuple[Turns, Meta]:
    """Returns a trajectory as a formatter does: `(conversation, meta)`, one action in each turn.

    The first user turn holds the instruction, every one the pictures of its step, one for each camera, and the `state`.
    `meta` tells the `cameras` in their order, `rewards`, `costs` and `success` where they are known, and what else is
    `told`. Raises SampleError as `require_even` does.
    """
    trajectory.require_even()
    turns: Turns = []
    for step in range(len(trajectory)):
        said = [{'type': 'text', 'text': trajectory.instruction}] if not step else []
        shown = [_picture(frames[step], trajectory.picture_options) for frames in trajectory.pictures.values()]
        state = {name: values[step] for name, values in trajectory.state.items()}
        turns.append({'role': 'user', 'content': [*said, *shown], **({'state': state} if state else {})})
        turns.append(
            {'role': 'assistant', 'content': [{'type': ACTION, ACTION: steps_of(trajectory.actions, step, 1)}]}
        )
    meta: Meta = {name: list(getattr(trajectory, name)) for name in PER_STEP if len(getattr(trajectory, name))}
    if trajectory.success is not None:
        meta['success'] = trajectory.success
    return turns, {'cameras': list(trajectory.pictures), **meta, **trajectory.told}


def _picture(source: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    return {'type': 'image', 'image': Media('image', source, options) if options else source}


def steps_of(actions: Actions, first: int, count: int) -> Actions:
    """Returns `count` steps of actions from `first` on; fewer where there are no more."""
    stop = first + count
    values = None if actions.values is None else actions.values[first:stop]
    return Actions(values, actions.names[first:stop], actions.dataset)
