"""Actions and states of a body as rows write them, in the normal form that conversations hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from align_anything.core.actions import DATASET, STATE, Actions
from align_anything.core.errors import SampleError
from align_anything.core.types import ACTION, Conversation

FORMS = "a name, a list of numbers (one step), or a list of either (a chunk), such as 'left' or [[0.1, 1], [0, 1]]"


def actions_of(where: str, value: Any) -> Actions:
    """Returns what an assistant turn does, from any form that rows have. Raises SampleError saying what it should be.

    That is a name, a list of numbers, a list of either, an array `(dimensions,)` or `(steps, dimensions)`, or Actions.
    """
    if isinstance(value, Actions):
        found = value
    elif isinstance(value, str):
        found = Actions(names=(value,))
    elif isinstance(value, (list, tuple)) and value and all(isinstance(name, str) for name in value):
        found = Actions(names=tuple(value))
    else:
        found = Actions(values=_steps(where, value))
    if not len(found):
        raise SampleError(f'{where} has an action of no steps. An action is {FORMS}.')
    if any(not name.strip() for name in found.names):
        raise SampleError(f'{where} has an action whose name is empty.')
    if found.values is not None and not bool(torch.isfinite(found.values).all()):
        raise SampleError(f'{where} has an action with numbers that are not finite: {found.written}.')
    return found


def require_one_kind(conversation: Conversation) -> None:
    """Raises SampleError where some actions of an episode are names, or more numbers, and others not; so of states."""
    parts = [part for message in conversation for part in message['content'] if part['type'] == ACTION]
    joined_actions([part[ACTION] for part in parts])
    sizes: dict[str, set[int]] = {}
    for message in conversation:
        for name, numbers in message.get(STATE, {}).items():
            sizes.setdefault(name, set()).add(len(numbers))
    uneven = next((name for name, found in sizes.items() if len(found) > 1), None)
    if uneven is not None:
        told = ' and '.join(map(str, sorted(sizes[uneven])))
        raise SampleError(f"the state '{uneven}' of the episode has {told} numbers; all should have as many.")


def joined_actions(several: Sequence[Actions]) -> Actions:
    """Returns the steps of all of them, one after the other. Raises SampleError for names among numbers."""
    with_names = [actions for actions in several if actions.values is None]
    if with_names and len(with_names) < len(several):
        raise SampleError('some actions of the episode are names and some are numbers.')
    dataset = several[0].dataset if several else ''
    if with_names or not several:
        return Actions(names=tuple(name for actions in several for name in actions.names), dataset=dataset)
    sizes = sorted({actions.values.shape[1] for actions in several})
    if len(sizes) > 1:
        raise SampleError(
            f'the actions of the episode have {" and ".join(map(str, sizes))} numbers; all should have as many.'
        )
    return Actions(torch.cat([actions.values for actions in several]), dataset=dataset)


def _steps(where: str, value: Any) -> Tensor:
    rows = value.tolist() if isinstance(value, Tensor) else _listed(value)
    if not isinstance(rows, list) or not rows:
        raise SampleError(f'{where} has {_told(value)} as its action. An action is {FORMS}.')
    steps = rows if all(isinstance(row, (list, tuple)) for row in rows) else [rows]
    if not all(map(_is_number, (number for step in steps for number in step))):
        raise SampleError(f'{where} has {_told(value)} as its action, not all of it numbers. An action is {FORMS}.')
    sizes = sorted({len(step) for step in steps})
    if len(sizes) > 1 or not sizes[0]:
        raise SampleError(
            f'{where} has a chunk of actions with {" and ".join(map(str, sizes))} numbers; all steps should have as '
            'many, and at least one.'
        )
    return torch.tensor(steps, dtype=torch.float64)


def state_of(where: str, value: Any) -> dict[str, tuple[float, ...]]:
    """Returns the state of a body, finite numbers by name. A list without a name is called `state`.

    Raises SampleError for anything else.
    """
    named = value if isinstance(value, Mapping) else {STATE: value}
    found = {str(name): _numbers(numbers) for name, numbers in named.items() if numbers is not None}
    wrong = [name for name, numbers in found.items() if numbers is None]
    if wrong:
        raise SampleError(
            f"{where} has a state whose '{wrong[0]}' is {_told(named[wrong[0]])}. A state is numbers by name, such as "
            "{'joints': [0.1, 0.2], 'gripper': [1]}."
        )
    return {name: numbers for name, numbers in found.items() if numbers is not None}


def of_dataset(conversation: Conversation, dataset: str) -> Conversation:
    """Returns the conversation with its actions and states as those of a dataset, whose statistics hold for them."""

    def part_of(part: dict[str, Any]) -> dict[str, Any]:
        return {**part, ACTION: replace(part[ACTION], dataset=dataset)} if part['type'] == ACTION else part

    return [
        {
            **message,
            'content': [part_of(part) for part in message['content']],
            **({DATASET: dataset} if STATE in message else {}),
        }
        for message in conversation
    ]


def written_state(state: Mapping[str, Sequence[float]], digits: int = 4) -> str:
    """Returns a state as a person would read it."""
    return ', '.join(
        f'{name} [{", ".join(f"{value:.{digits}g}" for value in numbers)}]' for name, numbers in state.items()
    )


def _numbers(value: Any) -> tuple[float, ...] | None:
    values = [value] if _is_number(value) else _listed(value.tolist() if isinstance(value, Tensor) else value)
    if not isinstance(values, (list, tuple)) or not values or not all(map(_is_number, values)):
        return None
    return tuple(map(float, values))


def _listed(value: Any) -> Any:
    """The lists of an array, or the value itself."""
    if type(value).__module__.split('.')[0] == 'numpy':
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _told(value: Any) -> str:
    return f'{str(value)[:60]!r} ({type(value).__name__})'
