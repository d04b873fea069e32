"""An environment tried out before a run begins: what it tells of itself, and whether it can be asked at all."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

from align_anything.core.actions import ActionSpace
from align_anything.core.errors import FOREIGN_FAULTS, AlignAnythingError, WorldError
from align_anything.environments.base import BatchEnvironment, Environment, close, make_environment, require_capacity
from align_anything.environments.steps import checked_actions, checked_tools


class Offered(NamedTuple):
    """What an environment tells before an episode: its tools, whether it rewards, and what can be done in it."""

    tools: list[dict[str, Any]]
    rewards: bool
    actions: ActionSpace | None


def offered_by(name: str, kwargs: Mapping[str, Any]) -> Offered:
    """Returns what an environment tells of itself; it is made once, and closed.

    Raises WorldError where it cannot be made or tells what is none, and where its methods cannot be called.
    """
    made = make_environment(name, kwargs)
    require_capacity(name, made)
    try:
        offered = Offered(checked_tools(made.tools), bool(made.rewards), checked_actions(made.actions))
    except AlignAnythingError:
        raise
    except FOREIGN_FAULTS as error:
        raise WorldError(
            f"environment '{name}' cannot tell its tools, rewards and actions before an episode: "
            f'{type(error).__name__}: {error}.'
        ) from error
    _require_callable(name, made)
    close(name, made)
    return offered


def _require_callable(name: str, made: Environment | BatchEnvironment) -> None:
    """Raises WorldError where a method is missing, or takes something else than it is given."""
    batch = issubclass(type(made), BatchEnvironment)
    methods = (
        ('reset', made.reset, ('rows', 'seeds') if batch else ('row', 'seed')),
        ('step', made.step, ('said',)),
        ('score', made.score, ('number',) if batch else ()),
        ('close', made.close, ()),
    )
    for called, method, given in methods:
        call = f'{called}({", ".join(given)})'
        if inspect.iscoroutinefunction(method):
            raise WorldError(f"environment '{name}': {call} is async, and should be a plain function.")
        try:
            inspect.signature(method).bind(*given)
        except ValueError:
            # Of what is written in C nothing is known.
            continue
        except TypeError as error:
            raise WorldError(f"environment '{name}' cannot be asked for {call}: {error}.") from error
    unwritten = {
        'step': type(made).step in (Environment.step, BatchEnvironment.step),
        'reset': type(made).reset is BatchEnvironment.reset,
    }
    for call, is_unwritten in unwritten.items():
        if is_unwritten:
            raise WorldError(f"environment '{name}' has no {call}.")
