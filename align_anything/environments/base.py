"""What every environment is: it begins an episode, and answers each turn of the policy. Found by name, or in a file."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from align_anything.configs.options import checked_options
from align_anything.core.actions import Actions, ActionSpace
from align_anything.core.errors import FOREIGN_FAULTS, AlignAnythingError, WorldError
from align_anything.core.logging import get_logger
from align_anything.core.registry import Registry
from align_anything.core.types import Message
from align_anything.core.user_files import look_up

logger = get_logger(__name__)


@dataclass(frozen=True)
class Call:
    """A call of a tool, as the policy wrote it."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Said:
    """What the policy said in a turn.

    Attributes:
        text: its words, without the calls.
        calls: the tools that it calls, in order.
        parts: the whole turn as the content of a message, media decoded; calls stand in it as they were written.
        actions: what it does, of policies that write actions; only those steps that are to be done now.
        problem: what is wrong with a call that was begun and cannot be read, empty where nothing is: there are no
            calls then.
    """

    text: str
    calls: tuple[Call, ...] = ()
    parts: Sequence[Mapping[str, Any]] = ()
    actions: Actions | None = None
    problem: str = ''


@dataclass(frozen=True)
class Observation:
    """What an environment shows.

    Attributes:
        messages: a text, which is a user turn, or messages in Hugging Face chat form, of `user` or `tool`. A medium is
            a part such as `{'type': 'image', 'image': PIL.Image}`; paths, bytes and arrays are taken as in data.
    """

    messages: str | Sequence[Message] = ()


@dataclass(frozen=True)
class Step:
    """What comes of a turn of the policy.

    Attributes:
        observation: what it sees next; it may be left out where the episode is over.
        reward: what the turn was worth, None for nothing to say.
        costs: what it cost, by name; a safe algorithm bounds their sum.
        done: whether the episode is over.
        info: what else is to be told. Numbers and truth values become metrics where they are the `success` of the
            episode or `tool_errors` in a turn.
        truncated: whether it is over because it may not last longer; it is unfinished then, as at `max_turns`.
    """

    observation: Observation | None = None
    reward: float | None = None
    costs: Mapping[str, float] = field(default_factory=dict)
    done: bool = False
    info: Mapping[str, Any] = field(default_factory=dict)
    truncated: bool = False


class Environment:
    """Base of environments. An object has one episode at a time; its parameters are settings (`environment_kwargs`).

    Attributes:
        tools: the tools that may be called, as JSON schemas in the form of OpenAI; see `tools.schema_of`.
        rewards: whether it says what episodes are worth: one that reached a limit before it said so is worth 0 then.
            Else other rewards judge alone.
        succeeds: whether it tells of episodes that they succeeded (`success` in `info`): one that reached a limit, or
            failed, before it said so did not. None leaves that to the others that are told of together: where it said
            so of one of them. It may be said in `reset`, of the row.
        actions: what policies do in it that act otherwise than by words; None where words are all.
        demonstration: of a seed, an episode of somebody who knows how, as messages, and what came of it; None where
            there is nobody, and nothing for a seed where that failed.
    """

    tools: Sequence[Mapping[str, Any]] = ()
    rewards: bool = True
    succeeds: bool | None = None
    actions: ActionSpace | None = None
    demonstration: Callable[[int], tuple[list[Message], dict[str, Any]] | None] | None = None

    def reset(self, row: Mapping[str, Any], seed: int) -> Observation:
        """Begins an episode; returns what follows the prompt of the row, by default nothing.

        All generations of a row begin with the same seed, and must begin alike: that is what they are compared by.

        Args:
            row: the row's columns that ride along (`meta`), its `messages`, media decoded, and its `source`.
            seed: of whatever is random in the episode; another one in each epoch.
        """
        return Observation()

    def step(self, said: Said) -> Step:
        """Returns what comes of a turn of the policy."""
        raise NotImplementedError

    def score(self) -> float | None:
        """Returns what the episode was worth beside the rewards of its turns, once, however it ended."""
        return None

    def close(self) -> None:
        """Gives back what the object holds; no episode follows."""


class BatchEnvironment:
    """Base of environments whose episodes go on together, as in vectorised simulators.

    Attributes:
        tools, rewards, succeeds, actions: as those of `Environment`.
        capacity: most episodes that it holds; None for as many as there are.
    """

    tools: Sequence[Mapping[str, Any]] = ()
    rewards: bool = True
    succeeds: bool | None = None
    actions: ActionSpace | None = None
    capacity: int | None = None

    def reset(self, rows: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> Sequence[Observation]:
        """Begins an episode for each row and seed; returns what follows their prompts. See `Environment.reset`."""
        raise NotImplementedError

    def step(self, said: Sequence[Said | None]) -> Sequence[Step | None]:
        """Returns what comes of a turn of each episode; None for those that say None, which are over."""
        raise NotImplementedError

    def score(self, number: int) -> float | None:
        """Returns what an episode was worth beside the rewards of its turns, once, however it ended."""
        return None

    def close(self) -> None:
        """Gives back what the object holds; no episode follows."""


class Alone(BatchEnvironment):
    """An environment of one episode, as a batch of one."""

    capacity = 1

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    @property
    def tools(self) -> Sequence[Mapping[str, Any]]:
        """Those of the environment."""
        return self._environment.tools

    @property
    def rewards(self) -> bool:
        """That of the environment."""
        return self._environment.rewards

    @property
    def succeeds(self) -> bool | None:
        """That of the environment."""
        return self._environment.succeeds

    @property
    def actions(self) -> ActionSpace | None:
        """Those of the environment."""
        return self._environment.actions

    def reset(self, rows: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> Sequence[Observation]:
        """Begins the episode."""
        (row,), (seed,) = rows, seeds
        return [self._environment.reset(row, seed)]

    def step(self, said: Sequence[Said | None]) -> Sequence[Step | None]:
        """Returns what comes of its turn."""
        (own,) = said
        return [None if own is None else self._environment.step(own)]

    def score(self, number: int) -> float | None:
        """Returns that of the episode."""
        return self._environment.score()

    def close(self) -> None:
        """Closes the environment."""
        self._environment.close()


SEED = 'seed'
"""The column of a row that says what is random in its episodes, in place of the seed of the run."""


def seed_of_row(row: Mapping[str, Any], seed: int) -> int:
    """Returns the row's own seed, or where it has none the one that is given, from 0 to less than 2 ** 32.

    Raises WorldError for one that is no whole number.
    """
    own = row.get(SEED)
    try:
        return int(seed if own is None else own) % 2**32
    except (TypeError, ValueError, OverflowError) as error:
        raise WorldError(f"the '{SEED}' of the row is {own!r}, and should be a whole number.") from error


Kind = type[Environment] | type[BatchEnvironment]


def _is_environment(value: Any) -> bool:
    bases = (Environment, BatchEnvironment)
    return inspect.isclass(value) and issubclass(value, bases) and value not in (*bases, Alone)


_ENVIRONMENTS: Registry[Kind] = Registry(
    'environment',
    WorldError,
    package='align_anything.environments.worlds',
    group='align_anything.environments',
    wanted='a class that derives from align_anything.environments.Environment, or BatchEnvironment',
    is_one=_is_environment,
)


def register_environment(name: str) -> Callable[[Kind], Kind]:
    """Decorator that files an environment under `name`. Raises `WorldError` when another one holds the name."""
    return _ENVIRONMENTS.register(name)


def get_environment(name: str) -> Kind:
    """Returns the environment called `name`, or the class `Class` of `path/to/file.py:Class`.

    Raises `WorldError` with the nearest name when there is none, and when the file cannot be imported.
    """
    return look_up(name, _ENVIRONMENTS)


def environment_names() -> list[str]:
    """Returns the names of all registered environments."""
    return _ENVIRONMENTS.names()


def checked_kwargs(name: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of an environment, in the types that it declares, with its defaults.

    Raises SettingsError for unknown or missing ones, and WorldError where there is no such environment.
    """
    return checked_options(f"environment '{name}'", get_environment(name), kwargs, positional=True)


def make_environment(name: str, kwargs: Mapping[str, Any]) -> Environment | BatchEnvironment:
    """Returns an environment of that name. Raises WorldError where it cannot be made."""
    kind = get_environment(name)
    try:
        return kind(**kwargs)
    except AlignAnythingError:
        raise
    except FOREIGN_FAULTS as error:
        raise WorldError(f"environment '{name}' cannot be made: {type(error).__name__}: {error}.") from error


def make_batch(name: str, kwargs: Mapping[str, Any]) -> BatchEnvironment:
    """Returns an environment of that name, one of a single episode as a batch of one. Raises as `make_environment`."""
    made = make_environment(name, kwargs)
    require_capacity(name, made)
    return made if issubclass(type(made), BatchEnvironment) else Alone(made)


def require_capacity(name: str, made: Environment | BatchEnvironment) -> None:
    """Raises WorldError where an environment that was made holds other episodes than its class says."""
    capacity = capacity_of(name)
    if issubclass(type(made), BatchEnvironment) and made.capacity != capacity:
        raise WorldError(
            f"environment '{name}' sets its capacity ({made.capacity}) when it is made: it belongs to the class, for "
            'it says how many are made.'
        )


def close(name: str, made: Environment | BatchEnvironment) -> None:
    """Closes an environment that nobody needs any more; what fails in it then is told, and fails nobody."""
    try:
        made.close()
    except FOREIGN_FAULTS as error:
        logger.warning('%s failed to close: %s: %s', name, type(error).__name__, error)


def capacity_of(name: str) -> int | None:
    """Returns most episodes that an environment of that name holds at once; None for as many as there are.

    Raises WorldError for what is no number of episodes.
    """
    kind = get_environment(name)
    if not issubclass(kind, BatchEnvironment):
        return 1
    capacity = kind.capacity
    if capacity is not None and (type(capacity) is not int or capacity < 1):
        raise WorldError(
            f"environment '{name}': capacity of the class is {capacity!r}, and should be a whole number from 1, or "
            'None for as many episodes as there are.'
        )
    return capacity
