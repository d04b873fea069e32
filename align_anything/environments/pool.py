"""Environments in this process, one for each episode, with what fails made good by another try or told."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any, NamedTuple, TypeVar

from align_anything.core.errors import FOREIGN_FAULTS, WorldError
from align_anything.core.logging import get_logger
from align_anything.core.types import Conversation
from align_anything.environments.base import Environment, Observation, Said, Step, make_environment
from align_anything.environments.observing import Limits, shown

logger = get_logger(__name__)

T = TypeVar('T')
NAMED = 'environment'
"""The column of a row that names its environment."""


class EpisodeFailed(Exception):
    """An environment that failed, and failed again; `trace` is where."""

    def __init__(self, reason: str, trace: str) -> None:
        super().__init__(reason)
        self.trace = trace


class Begun(NamedTuple):
    """How an episode begins: messages behind the row's prompt, the tools that may be called, whether it is rewarded."""

    messages: Conversation
    tools: list[dict[str, Any]]
    rewards: bool


class Answered(NamedTuple):
    """What an environment answers to a turn: what it shows, and the rest of its `Step`."""

    messages: Conversation
    step: Step


@dataclass(frozen=True)
class Pool:
    """Makes the environments of episodes.

    Attributes:
        name: the environment of rows that name none of their own in the column `environment`.
        kwargs: its arguments; those of other environments are their defaults.
        limits: how much an observation may hold.
        retries: how often an episode that fails is begun again, with the same seed and the same turns of the policy.
    """

    name: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    retries: int = 1

    def open(self, row: Mapping[str, Any], seed: int) -> Session:
        """Returns the environment of one episode of a row, not begun yet."""
        name = row.get(NAMED) or self.name
        kwargs = self.kwargs if name == self.name else {}
        return Session(lambda: make_environment(name, kwargs), row, seed, self.limits, self.retries)


class Session:
    """The environment of one episode. Its methods raise EpisodeFailed once the environment has failed too often."""

    def __init__(
        self,
        make: Callable[[], Environment],
        row: Mapping[str, Any],
        seed: int,
        limits: Limits,
        retries: int,
    ) -> None:
        self._make, self._row, self._seed, self._limits, self._left = make, row, seed, limits, retries
        self._environment: Environment | None = None
        self._said: list[Said] = []
        self._told: list[Conversation] = []

    def begin(self) -> Begun:
        """Begins the episode."""
        return self._tried(self._begun)

    def step(self, said: Said) -> Answered:
        """Returns the answer to a turn of the policy."""
        answered = self._tried(lambda: self._answered(said))
        self._said.append(said)
        self._told.append(answered.messages)
        return answered

    def score(self) -> float | None:
        """Returns what the environment says of the whole episode."""
        return self._tried(self._scored)

    def close(self) -> None:
        """Closes the environment; what fails in it then is told, and fails nobody."""
        environment, self._environment = self._environment, None
        if environment is not None:
            try:
                environment.close()
            except FOREIGN_FAULTS as error:
                logger.warning('%s failed to close: %s: %s', type(environment).__name__, type(error).__name__, error)

    def _tried(self, act: Callable[[], T]) -> T:
        while True:
            try:
                return act()
            except FOREIGN_FAULTS as error:
                trace = traceback.format_exc()
                self.close()
                if not self._left:
                    raise EpisodeFailed(f'{type(error).__name__}: {error}', trace) from error
                self._left -= 1

    def _begun(self) -> Begun:
        self._environment = self._make()
        observation = self._environment.reset(dict(self._row), self._seed)
        tools = [dict(tool) for tool in self._environment.tools]
        messages = shown(Observation() if observation is None else observation, self._limits)
        return Begun(messages, tools, self._environment.rewards)

    def _answered(self, said: Said) -> Answered:
        return self._stepped(self._replayed(), said)

    def _scored(self) -> float | None:
        value = self._replayed().score()
        return None if value is None else _number(value, 'score')

    def _replayed(self) -> Environment:
        """The environment where the episode stands: of one that failed, another that got the same turns again."""
        if self._environment is None:
            self._begun()
            for earlier, told in zip(self._said, self._told, strict=True):
                if _words(self._stepped(self._environment, earlier).messages) != _words(told):
                    raise WorldError('with the same seed and the same turns it went otherwise than before it failed.')
        assert self._environment is not None
        return self._environment

    def _stepped(self, environment: Environment, said: Said) -> Answered:
        step = environment.step(said)
        if type(step) is not Step:
            raise WorldError(f'step returned {type(step).__name__}, and should return a Step.')
        reward = None if step.reward is None else _number(step.reward, 'reward')
        costs = {name: _number(value, f"cost '{name}'") for name, value in step.costs.items()}
        messages = [] if step.observation is None else shown(step.observation, self._limits)
        if not messages and not step.done:
            raise WorldError('a step neither ends the episode (done) nor shows anything (observation).')
        return Answered(messages, replace(step, reward=reward, costs=costs, done=bool(step.done)))


def _number(value: Any, what: str) -> float:
    if not isinstance(value, Real) or not math.isfinite(value):
        raise WorldError(f'the {what} of a step is {value!r}, and should be a finite number.')
    return float(value)


def _words(messages: Conversation) -> list[Any]:
    """What the messages say, media left out."""
    return [(message['role'], [part.get('text') for part in message['content']]) for message in messages]
