"""Environments of gymnasium, whose actions are said in words."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy
from PIL import Image

from align_anything.core.errors import FOREIGN_FAULTS, WorldError
from align_anything.environments.base import Environment, Observation, Said, Step, register_environment

RENDERED = {'values': None, 'ansi': 'ansi', 'image': 'rgb_array'}
OF_MINIGRID = ('MiniGrid-', 'BabyAI-')
EXTRA = "pip install 'align-anything[environments]'"
BY_REWARD = 'reward'
DIGITS = 3
COLOUR = re.compile(r'\x1b\[[\d;]*m')
HIGHLIGHT = re.compile(rf'(?:{COLOUR.pattern})+([^\x1b]+)\x1b\[0m')


@register_environment('gymnasium')
class Gymnasium(Environment):
    """An environment of gymnasium with discrete actions; the last action that a turn names is done.

    One that ends itself is done; one that its time limit ends is unfinished. It is never stepped after either, so that
    what resets itself mixes no episodes.

    Args:
        id: its name, such as `MiniGrid-Empty-5x5-v0`; `module:Name-v0` imports the module first.
        options: arguments of `gymnasium.make`.
        actions: words for its actions, in their order; by default the names that it has for them, else their numbers.
        observation: what is shown of it: the `values` of what it observes, what it draws in text (`ansi`), or a picture
            (`image`) with the texts among the values.
        pixels: length that the longer side of a picture is brought to; None leaves it.
        rules: what is said before the first observation; by default which actions there are.
        cost: key of `info` whose number is a cost of each turn.
        success: key of `info` that tells of success, or `reward`: it ended itself, with a reward above 0.

    Raises:
        WorldError: there is no such environment, or its actions are not discrete, or not as many as words.
    """

    def __init__(
        self,
        id: str,
        options: dict[str, Any] | None = None,
        actions: list[str] | None = None,
        observation: Literal['values', 'ansi', 'image'] = 'values',
        pixels: int | None = None,
        rules: str | None = None,
        cost: str | None = None,
        success: str | None = None,
    ) -> None:
        self._world = _made(id, RENDERED[observation], options or {})
        self._first, self._actions = _words(self._world, id, actions)
        self._shown, self._pixels, self._cost, self._success = observation, pixels, cost, success
        self._rules = f'Say one of: {", ".join(self._actions)}.' if rules is None else rules
        self._over = True

    def reset(self, row: Mapping[str, Any], seed: int) -> Observation:
        """Begins with the seed."""
        observed, _ = self._world.reset(seed=seed)
        self._over = False
        return self._observation(observed, self._rules)

    def step(self, said: Said) -> Step:
        """Does the last action that is named; where none is, asks for one."""
        if self._over:
            raise WorldError('the episode is over, and a further turn came.')
        action = self._action(said)
        if action is None:
            return Step(Observation(f'Say one of: {", ".join(self._actions)}.'), costs=self._costs({}))
        observed, reward, terminated, truncated, info = self._world.step(action)
        self._over = bool(terminated or truncated)
        return Step(
            self._observation(observed),
            reward=float(reward),
            costs=self._costs(info),
            done=bool(terminated),
            truncated=bool(truncated),
            info=self._told(bool(terminated), float(reward), info) if self._over else {},
        )

    def close(self) -> None:
        """Closes it."""
        self._world.close()

    def _action(self, said: Said) -> int | None:
        """The action that a turn says."""
        words = '|'.join(re.escape(word) for word in sorted(self._actions, key=len, reverse=True))
        found = re.findall(rf'(?<!\w)(?:{words})(?!\w)', said.text, re.IGNORECASE)
        if not found:
            return None
        return self._first + [word.lower() for word in self._actions].index(found[-1].lower())

    def _costs(self, info: Mapping[str, Any]) -> dict[str, float]:
        return {} if self._cost is None else {self._cost: float(info.get(self._cost, 0.0))}

    def _told(self, terminated: bool, reward: float, info: Mapping[str, Any]) -> dict[str, Any]:
        if self._success is None:
            return {}
        if self._success == BY_REWARD:
            return {'success': terminated and reward > 0}
        return {'success': bool(info.get(self._success, False))}

    def _observation(self, observed: Any, said: str = '') -> Observation:
        """What is shown of what the environment observes, behind what is said."""
        if self._shown == 'image':
            content = [{'type': 'image', 'image': self._picture()}, '\n'.join(filter(None, [said, *_texts(observed)]))]
            return Observation([{'role': 'user', 'content': [part for part in content if part]}])
        shown = _plain(self._world.render()) if self._shown == 'ansi' else _written(observed)
        return Observation('\n'.join(filter(None, [said, shown])))

    def _picture(self) -> Image.Image:
        picture = Image.fromarray(numpy.asarray(self._world.render(), numpy.uint8))
        if self._pixels is None or max(picture.size) == self._pixels:
            return picture
        factor = self._pixels / max(picture.size)
        return picture.resize([max(1, round(side * factor)) for side in picture.size], Image.Resampling.BICUBIC)


def _made(id: str, mode: str | None, options: Mapping[str, Any]) -> Any:
    # Pictures are drawn without a screen.
    os.environ.setdefault('SDL_VIDEODRIVER', 'dummy')
    try:
        import gymnasium

        if id.startswith(OF_MINIGRID):
            importlib.import_module('minigrid')
    except ImportError as error:
        raise WorldError(f"the environment 'gymnasium' needs {error.name}: {EXTRA}") from error
    try:
        drawn = {} if mode is None else {'render_mode': mode}
        return gymnasium.make(id, disable_env_checker=True, **drawn, **options)
    except FOREIGN_FAULTS as error:
        raise WorldError(f"gymnasium makes no '{id}': {type(error).__name__}: {error}") from error


def _words(world: Any, id: str, given: Sequence[str] | None) -> tuple[int, list[str]]:
    """The number of the first action, and the words for all of them."""
    from gymnasium.spaces import Discrete

    space = world.action_space
    if type(space) is not Discrete:
        raise WorldError(f"'{id}' has actions of {space}, and only discrete ones can be said in words.")
    first, number = int(space.start), int(space.n)
    own = getattr(world.unwrapped, 'actions', None)
    names = [action.name for action in own] if isinstance(own, type) and len(own) == number else []
    words = list(given or names or map(str, range(first, first + number)))
    if len(words) != number or len({word.lower() for word in words}) < number:
        raise WorldError(f"'{id}' has {number} actions, which need as many different words, and there are {words}.")
    return first, words


def _plain(drawn: Any) -> str:
    """What is drawn for a terminal: what stands out by its colour stands in brackets."""
    return COLOUR.sub('', HIGHLIGHT.sub(r'[\1]', str(drawn)))


def _texts(observed: Any) -> list[str]:
    """The texts in what an environment observes."""
    values = observed.values() if isinstance(observed, Mapping) else [observed]
    return [value for value in values if isinstance(value, str)]


def _written(observed: Any) -> str:
    """What an environment observes, in text."""
    if isinstance(observed, Mapping):
        return '\n'.join(f'{name}: {_written(value)}' for name, value in observed.items())
    if not isinstance(observed, numpy.ndarray):
        return str(observed)
    if observed.dtype.kind == 'f':
        observed = numpy.round(observed.astype(float), DIGITS)
    return str(observed.tolist())
