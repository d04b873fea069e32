"""Environments for many episodes, asked all at once, with what fails made good by another try or told."""

from __future__ import annotations

import itertools
import json
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any, NamedTuple, TypeVar

from align_anything.configs.redaction import without_secrets
from align_anything.core.actions import ActionSpace
from align_anything.core.errors import FOREIGN_FAULTS, WorldError
from align_anything.core.logging import get_logger
from align_anything.core.types import Conversation
from align_anything.environments.base import BatchEnvironment, Observation, Said, Step
from align_anything.environments.hosts import Fault, Here, Host, Lost
from align_anything.environments.observing import Limits, shown
from align_anything.environments.steps import checked_actions, checked_number, checked_step, checked_tools

logger = get_logger(__name__)

T = TypeVar('T')
NAMED = 'environment'
"""The column of a row that names its environment."""
ARGUMENTS = 'environment_kwargs'
"""The column of a row with arguments of its environment: a mapping, or its JSON text."""
MOST_LOST = 8
"""How often the process of an episode may end through the fault of others."""


class EpisodeFailed(Exception):
    """An environment that failed, and failed again; `trace` is where."""

    def __init__(self, reason: str, trace: str) -> None:
        super().__init__(reason)
        self.trace = trace


class Begun(NamedTuple):
    """How an episode begins: messages behind the row's prompt, and what its environment says of itself.

    That are the tools that may be called, whether it rewards, whether it tells of success, and what can be done in it.
    """

    messages: Conversation
    tools: list[dict[str, Any]]
    rewards: bool
    succeeds: bool | None = None
    actions: ActionSpace | None = None


class Answered(NamedTuple):
    """What an environment answers to a turn: what it shows, and the rest of its `Step`."""

    messages: Conversation
    step: Step


class Seat(NamedTuple):
    """An episode: that of a number in a session."""

    session: Session
    number: int


class Pool:
    """Makes the environments of episodes, and asks those of many episodes at once where they can be.

    It can be asked from any thread; those that live in one place wait for each other.

    Args:
        name: the environment of rows that name none of their own in the column `environment`.
        kwargs: its arguments; those of other environments are their defaults, and the column `environment_kwargs` of a
            row goes over either.
        limits: how much an observation may hold.
        retries: how often an episode that fails is begun again, with the same seed and the same turns of the policy.
        host: where the environments live; in this process by default.
    """

    def __init__(
        self,
        name: str,
        kwargs: Mapping[str, Any] | None = None,
        limits: Limits | None = None,
        retries: int = 1,
        host: Host | None = None,
    ) -> None:
        self.name, self.kwargs, self.retries = name, dict(kwargs or {}), retries
        self.limits, self._host = limits or Limits(), host or Here()
        self._lanes = itertools.count()
        self._turns = [Lock() for _ in range(max(1, self._host.lanes))]
        self._threads = ThreadPoolExecutor(self._host.lanes, 'environments') if self._host.lanes else None

    def open(self, rows: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> list[Seat]:
        """Returns an episode for each row and seed, not begun yet. Those that go on together share a session."""
        alike: dict[tuple[str, str], list[int]] = {}
        for number, row in enumerate(rows):
            alike.setdefault((self._name(row), repr(row.get(ARGUMENTS))), []).append(number)
        seats: dict[int, Seat] = {}
        for (name, _), numbers in alike.items():
            for own in self._batches(name, numbers):
                session = self._session(name, [rows[one] for one in own], [seeds[one] for one in own])
                seats |= {one: Seat(session, place) for place, one in enumerate(own)}
        return [seats[number] for number in range(len(rows))]

    def begin(self, seats: Sequence[Seat]) -> list[Begun | EpisodeFailed]:
        """Begins episodes; those of a session all together. One that fails has its failure in its place."""
        return self._each(seats, lambda session, numbers: _picked(session.begin(), numbers))

    def step(self, seats: Sequence[Seat], said: Sequence[Said]) -> list[Answered | EpisodeFailed]:
        """Returns the answers to what the policy said in these episodes; of one that fails, its failure."""
        by_seat = {(id(seat.session), seat.number): own for seat, own in zip(seats, said, strict=True)}

        def stepped(session: Session, numbers: Sequence[int]) -> list[Any]:
            turns = [by_seat.get((id(session), number)) for number in range(len(session))]
            return _picked(session.step(turns), numbers)

        return self._each(seats, stepped)

    def score(self, seats: Sequence[Seat]) -> list[float | None | EpisodeFailed]:
        """Returns what the environments say of whole episodes; of one that fails, its failure."""
        return self._each(seats, lambda session, numbers: [session.score(number) for number in numbers])

    def close(self, seats: Sequence[Seat]) -> None:
        """Closes the environments of episodes; what fails in them then is told, and fails nobody."""
        self._each(seats, lambda session, numbers: [session.close() for _ in numbers])

    def shut(self) -> None:
        """Ends the processes that environments live in."""
        self._host.close()

    def _each(self, seats: Sequence[Seat], act: Callable[[Session, Sequence[int]], list[Any]]) -> list[Any]:
        """What `act` returns for the episodes of each session, in the order of the seats. Lanes go side by side."""
        places: dict[int, list[int]] = {}
        for place, seat in enumerate(seats):
            places.setdefault(id(seat.session), []).append(place)
        lanes: dict[int, list[list[int]]] = {}
        for own in places.values():
            lanes.setdefault(seats[own[0]].session.lane, []).append(own)
        found: list[Any] = [None] * len(seats)

        def run(lane: Sequence[list[int]]) -> None:
            for own in lane:
                session = seats[own[0]].session
                try:
                    with self._turns[session.lane]:
                        values = act(session, [seats[place].number for place in own])
                except EpisodeFailed as failure:
                    values = [failure] * len(own)
                for place, value in zip(own, values, strict=True):
                    found[place] = value

        # Who asks one lane alone does it in the own thread.
        alone = self._threads is None or len(lanes) < 2
        for _ in map(run, lanes.values()) if alone else self._threads.map(run, lanes.values()):
            pass
        return found

    def _name(self, row: Mapping[str, Any]) -> str:
        return str(row.get(NAMED) or self.name)

    def _kwargs(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of the environment of a row."""
        own = row.get(ARGUMENTS) or {}
        try:
            own = json.loads(own) if isinstance(own, str) else own
        except (ValueError, RecursionError) as error:
            raise WorldError(f'{ARGUMENTS} of the row is a text that is no JSON: {error}.') from error
        if not isinstance(own, Mapping):
            raise WorldError(f'{ARGUMENTS} of the row is a {type(own).__name__}, and should name arguments.')
        # Tables have a cell for each argument of any row.
        given = {key: value for key, value in own.items() if value is not None}
        return {**(self.kwargs if self._name(row) == self.name else {}), **given}

    def _batches(self, name: str, numbers: list[int]) -> list[list[int]]:
        """The episodes, in those that one environment holds."""
        try:
            most = self._host.capacity(name)
        except WorldError:
            # Making it will say so, of each.
            most = 1
        most = most or math.ceil(len(numbers) / max(1, self._host.lanes))
        return [numbers[start : start + most] for start in range(0, len(numbers), most)]

    def _session(self, name: str, rows: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> Session:
        lane = next(self._lanes) % max(1, self._host.lanes)

        def make() -> BatchEnvironment:
            return self._host.make(name, self._kwargs(rows[0]), lane)

        return Session(without_secrets(name), make, rows, seeds, self.limits, self.retries, lane)


class Session:
    """An environment with its episodes, mostly one. Its methods raise EpisodeFailed once it has failed too often.

    Args:
        name: what the environment is called.
        make: makes it, again after it failed.
        rows, seeds: of the episodes.
        limits: how much an observation may hold.
        retries: how often it is made again.
        lane: sessions of one lane are asked one after the other.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], BatchEnvironment],
        rows: Sequence[Mapping[str, Any]],
        seeds: Sequence[int],
        limits: Limits,
        retries: int,
        lane: int = 0,
    ) -> None:
        self.name, self.lane = name, lane
        self._make, self._rows, self._seeds, self._limits, self._left = make, rows, seeds, limits, retries
        self._lost = 0
        self._environment: BatchEnvironment | None = None
        self._said: list[Sequence[Said | None]] = []
        self._told: list[list[Any]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def begin(self) -> list[Begun]:
        """Begins the episodes."""
        return self._tried(self._begun)

    def step(self, said: Sequence[Said | None]) -> list[Answered | None]:
        """Returns the answers to a turn of each episode, None for those that say nothing any more."""
        answered = self._tried(lambda: self._stepped(self._replayed(), said))
        self._said.append(said)
        self._told.append(_told(answered))
        return answered

    def score(self, number: int) -> float | None:
        """Returns what the environment says of a whole episode."""
        return self._tried(lambda: self._scored(number))

    def close(self) -> None:
        """Closes the environment; what fails in it then is told, and fails nobody."""
        environment, self._environment = self._environment, None
        if environment is not None:
            try:
                environment.close()
            except Lost:
                return
            except FOREIGN_FAULTS as error:
                logger.warning('%s failed to close: %s', self.name, _reason(error))

    def _tried(self, act: Callable[[], T]) -> T:
        while True:
            try:
                return act()
            except Lost:
                # With the process that it shared with one that failed, and that is counted.
                self._environment = None
                self._lost += 1
                if self._lost > MOST_LOST:
                    raise EpisodeFailed(f'others ended its process {self._lost} times.', '') from None
            except FOREIGN_FAULTS as error:
                trace = error.trace if type(error) is Fault else traceback.format_exc()
                self.close()
                if not self._left:
                    raise EpisodeFailed(_reason(error), trace) from error
                self._left -= 1

    def _begun(self) -> list[Begun]:
        self._environment = self._make()
        # Each has a row of its own, also when it begins again: what it takes out of it is nobody else's.
        rows = [_apart(row) for row in self._rows]
        observations = _of_each(self._environment.reset(rows, self._seeds), len(self), 'reset')
        own = self._environment
        tools, actions = checked_tools(own.tools), checked_actions(own.actions)
        shown_of = [shown(Observation() if one is None else one, self._limits) for one in observations]
        return [Begun(messages, tools, own.rewards, own.succeeds, actions) for messages in shown_of]

    def _scored(self, number: int) -> float | None:
        value = self._replayed().score(number)
        return None if value is None else checked_number(value, 'the score of an episode')

    def _replayed(self) -> BatchEnvironment:
        """The environment where the episodes stand: of one that failed, another that got the same turns again."""
        if self._environment is None:
            self._begun()
            for earlier, told in zip(self._said, self._told, strict=True):
                if _told(self._stepped(self._environment, earlier)) != told:
                    raise WorldError('with the same seed and the same turns it went otherwise than before it failed.')
        assert self._environment is not None
        return self._environment

    def _stepped(self, environment: BatchEnvironment, said: Sequence[Said | None]) -> list[Answered | None]:
        steps = _of_each(environment.step(said), len(self), 'step')
        return [None if own is None else self._answered(step) for own, step in zip(said, steps, strict=True)]

    def _answered(self, step: Step) -> Answered:
        step = checked_step(step)
        messages = [] if step.observation is None else shown(step.observation, self._limits)
        if not (messages or step.done or step.truncated):
            raise WorldError('a step neither ends the episode (done) nor shows anything (observation).')
        return Answered(messages, step)


def _apart(value: Any) -> Any:
    """A copy of what records and lists hold, down to what is neither; media are the same."""
    if isinstance(value, Mapping):
        return {key: _apart(item) for key, item in value.items()}
    return [_apart(item) for item in value] if isinstance(value, list) else value


def _of_each(values: Any, number: int, call: str) -> list[Any]:
    """What an environment returns for each of its episodes."""
    if not isinstance(values, (list, tuple)) or len(values) != number:
        told = len(values) if isinstance(values, (list, tuple)) else f'a {type(values).__name__}'
        raise WorldError(f'{call} of {number} episodes returned {told}, and should return a list of {number}.')
    return list(values)


def _reason(error: BaseException) -> str:
    return error.reason if type(error) is Fault else f'{type(error).__name__}: {error}'


def _picked(values: Sequence[T], numbers: Sequence[int]) -> list[T]:
    return [values[number] for number in numbers]


def _told(answered: Sequence[Answered | None]) -> list[Any]:
    """What the answers say, media left out."""
    return [
        None
        if own is None
        else [(message['role'], [part.get('text') for part in message['content']]) for message in own.messages]
        for own in answered
    ]
