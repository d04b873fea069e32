"""Where environments live: in this process, or elsewhere, where they are asked by messages."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from align_anything.core.errors import WorldError
from align_anything.environments.base import BatchEnvironment, Observation, Said, Step, capacity_of, make_batch
from align_anything.environments.wire import actions_in, observation_in, row_out, said_out, step_in


class Lost(Exception):
    """An environment that is gone through no fault of its own, with the process that it was in."""


class Fault(Exception):
    """What an environment in another process failed with; `trace` is where, if that process told it."""

    def __init__(self, reason: str, trace: str = '') -> None:
        super().__init__(reason)
        self.reason, self.trace = reason, trace


class Host(Protocol):
    """A place for environments.

    Attributes:
        lanes: how many of them may be asked at once; 0 for one after the other, in this process.
    """

    lanes: int

    def capacity(self, name: str) -> int | None:
        """Most episodes that an environment of that name holds at once; None for as many as there are."""
        ...

    def make(self, name: str, kwargs: Mapping[str, Any], lane: int) -> BatchEnvironment:
        """Returns an environment, which one thread asks at a time, that of its lane."""
        ...

    def close(self) -> None:
        """Ends what it holds."""
        ...


class Here:
    """This process."""

    lanes = 0

    def capacity(self, name: str) -> int | None:
        """As `Host.capacity`."""
        return capacity_of(name)

    def make(self, name: str, kwargs: Mapping[str, Any], lane: int) -> BatchEnvironment:
        """As `Host.make`."""
        return make_batch(name, kwargs)

    def close(self) -> None:
        """There is nothing to end."""


class Askable(Protocol):
    """What answers messages, as `worker.answer` does."""

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the answer. Raises Lost where the environment of the message is gone, and Fault."""
        ...


class Elsewhere(BatchEnvironment):
    """An environment in another process.

    Args:
        where: what answers for it.
        name: its name, and its arguments.
    """

    def __init__(self, where: Askable, name: str, kwargs: Mapping[str, Any]) -> None:
        self._where, self._name, self._kwargs = where, name, kwargs
        self._id = uuid.uuid4().hex

    def reset(self, rows: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> list[Observation]:
        """Begins its episodes; `tools`, `rewards`, `succeeds` and `actions` are told then."""
        asked = {'name': self._name, 'kwargs': self._kwargs, 'rows': [row_out(row) for row in rows]}
        answer = self._ask('reset', **asked, seeds=list(seeds))
        self.tools, self.rewards = answer['tools'], answer['rewards']
        # Servers of others may say nothing of these.
        self.succeeds, self.actions = answer.get('succeeds'), actions_in(answer.get('actions'))
        return [observation_in(record) for record in answer['observations']]

    def step(self, said: Sequence[Said | None]) -> list[Step | None]:
        """Returns what comes of their turns."""
        return [step_in(record) for record in self._ask('step', said=[said_out(own) for own in said])['steps']]

    def score(self, number: int) -> float | None:
        """Returns what an episode was worth."""
        return self._ask('score', number=number)['score']

    def close(self) -> None:
        """Closes it there."""
        self._ask('close')

    def _ask(self, call: str, **more: Any) -> dict[str, Any]:
        answer = self._where.ask({'id': self._id, 'call': call, **more})
        if not isinstance(answer, Mapping):
            raise WorldError(f'{call} was answered by a {type(answer).__name__}.')
        if 'error' in answer:
            raise Fault(str(answer['error']), str(answer.get('trace', '')))
        missing = _ANSWERS[call] - answer.keys()
        if missing:
            raise WorldError(f'{call} was answered without {", ".join(sorted(missing))}.')
        return dict(answer)


_ANSWERS = {
    'reset': {'observations', 'tools', 'rewards'},
    'step': {'steps'},
    'score': {'score'},
    'close': set(),
}
