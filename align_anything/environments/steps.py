"""What comes of a turn, in plain numbers and truth values, checked where it is made: alike in every process."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from numbers import Real
from typing import Any

import numpy

from align_anything.core.actions import ActionSpace
from align_anything.core.errors import SampleError, WorldError
from align_anything.datasets.tool_calls import tools_of
from align_anything.environments.base import Step

LARGEST = float(numpy.finfo(numpy.float32).max)
"""Rewards and costs are added up in float32."""
SUCCESS, ERRORS = 'success', 'tool_errors'
"""What metrics read of `Step.info`."""


def checked_tools(tools: Any) -> list[dict[str, Any]]:
    """Returns the tools of an environment as chat templates take them. Raises WorldError for what is none."""
    try:
        found = tools_of([] if tools is None else list(tools))
        json.dumps(found, allow_nan=False)
    except (SampleError, TypeError, ValueError, RecursionError) as error:
        raise WorldError(f'its tools are none: {error}. Each is a JSON schema in the form of OpenAI.') from error
    return found


def checked_actions(actions: Any) -> ActionSpace | None:
    """Returns what can be done in an environment. Raises WorldError for what is no ActionSpace."""
    if actions is None or issubclass(type(actions), ActionSpace):
        return actions
    raise WorldError(f'its actions are {actions!r}, and should be an ActionSpace, or None where words are all.')


def checked_step(step: Step) -> Step:
    """Returns the step with its numbers as floats. Raises WorldError for what is no step, or has something else."""
    if type(step) is not Step:
        raise WorldError(f'step returned {type(step).__name__}, and should return a Step.')
    if not isinstance(step.costs, Mapping):
        raise WorldError(f'the costs of a step are {step.costs!r}, and should be numbers by name.')
    for name in step.costs:
        if not isinstance(name, str):
            raise WorldError(f'a cost of a step is called {name!r}, and names are texts.')
    return replace(
        step,
        reward=None if step.reward is None else checked_number(step.reward, 'the reward of a step'),
        costs={name: checked_number(value, f"cost '{name}' of a step") for name, value in step.costs.items()},
        done=_truth(step.done, 'done'),
        truncated=_truth(step.truncated, 'truncated'),
        info=_told(step.info),
    )


def checked_number(value: Any, what: str) -> float:
    """Returns a number of an environment as a float; a truth value is 0 or 1. Raises WorldError for what is none."""
    if not isinstance(value, (Real, numpy.bool_)):
        raise WorldError(f'{what} is {value!r}, and should be a finite number.')
    try:
        number = float(value)
    except OverflowError as error:
        raise WorldError(f'{what} is a number that no float holds: scale it down.') from error
    if not math.isfinite(number):
        raise WorldError(f'{what} is {number!r}, and should be a finite number.')
    if abs(number) > LARGEST:
        raise WorldError(f'{what} is {number:g}, which float32 does not hold: scale it down.')
    return number


def _truth(value: Any, name: str) -> bool:
    """A truth value. A text is none: 'False' would be true."""
    if value is None or type(value) in (bool, numpy.bool_) or (isinstance(value, Real) and value in (0, 1)):
        return bool(value)
    raise WorldError(f"'{name}' of a step is {value!r}, and should be true or false.")


def _told(info: Any) -> dict[str, Any]:
    if not isinstance(info, Mapping):
        raise WorldError(f'the info of a step is {info!r}, and should be values by name.')
    found = dict(info)
    for name in (SUCCESS, ERRORS):
        if (value := found.get(name)) is not None:
            number = checked_number(value, f"'{name}' in the info of a step")
            found[name] = bool(value) if type(value) in (bool, numpy.bool_) else number
    if found.get(ERRORS, 0) is None:
        del found[ERRORS]
    return found
