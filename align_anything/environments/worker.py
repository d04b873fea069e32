"""What a process does that environments run in: it answers messages of `wire.py`, one after the other."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from typing import Any

import psutil

from align_anything.core.errors import FOREIGN_FAULTS, WorldError
from align_anything.environments.base import BatchEnvironment, get_environment, make_batch
from align_anything.environments.steps import checked_number, checked_tools
from align_anything.environments.wire import (
    Line,
    actions_out,
    observation_out,
    row_in,
    said_in,
    step_out,
)

Hosted = dict[str, BatchEnvironment]
Record = dict[str, Any]


def work(line: Line) -> None:
    """Answers until the line ends."""
    hosted: Hosted = {}
    while (message := line.receive()) is not None:
        try:
            line.send(answer(hosted, message))
        except WorldError as error:
            # An answer that is none of JSON, or too long for a message.
            line.send(failure(error))


def answer(hosted: Hosted, message: Mapping[str, Any]) -> Record:
    """Returns what comes of a message: of the environment `id`, or `error` and `trace` where something is raised."""
    try:
        return _CALLS[message['call']](hosted, message)
    except FOREIGN_FAULTS as error:
        return failure(error)


def failure(error: BaseException) -> Record:
    """Returns what is told of an error."""
    return {'error': f'{type(error).__name__}: {error}', 'trace': ''.join(traceback.format_exception(error))}


def _load(hosted: Hosted, message: Mapping[str, Any]) -> Record:
    """Imports an environment, which can take long, before its time is taken."""
    get_environment(message['name'])
    return {}


def _reset(hosted: Hosted, message: Mapping[str, Any]) -> Record:
    environment = make_batch(message['name'], message['kwargs'])
    hosted[message['id']] = environment
    shown = environment.reset([row_in(row) for row in message['rows']], message['seeds'])
    return {
        'observations': [observation_out(observation) for observation in shown],
        'tools': checked_tools(environment.tools),
        'rewards': bool(environment.rewards),
        'succeeds': environment.succeeds,
        'actions': actions_out(environment.actions),
    }


def _step(hosted: Hosted, message: Mapping[str, Any]) -> Record:
    steps = hosted[message['id']].step([said_in(said) for said in message['said']])
    return {'steps': [step_out(step) for step in steps]}


def _score(hosted: Hosted, message: Mapping[str, Any]) -> Record:
    value = hosted[message['id']].score(message['number'])
    return {'score': None if value is None else checked_number(value, 'the score of an episode')}


def _close(hosted: Hosted, message: Mapping[str, Any]) -> Record:
    """Closes an environment. After the last one nothing may be left that environments started."""
    environment = hosted.pop(message['id'], None)
    failed = {}
    if environment is not None:
        try:
            environment.close()
        except FOREIGN_FAULTS as error:
            failed = failure(error)
    left = 0 if hosted else len(psutil.Process().children())
    return {**failed, 'left': left}


_CALLS: Mapping[str, Callable[[Hosted, Mapping[str, Any]], Record]] = {
    'load': _load,
    'reset': _reset,
    'step': _step,
    'score': _score,
    'close': _close,
}
