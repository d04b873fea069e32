"""Environments of gymnasium, acted in by words, by numbers, or by the actions of policies that have them."""

from __future__ import annotations

import importlib
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy
from PIL import Image

from align_anything.core.actions import Actions, ActionSpace
from align_anything.core.errors import FOREIGN_FAULTS, WorldError
from align_anything.core.registry import nearest
from align_anything.environments.base import Environment, Observation, Said, Step, register_environment

RENDERED = {'values': None, 'ansi': 'ansi', 'image': 'rgb_array'}
OF_MINIGRID = ('MiniGrid-', 'BabyAI-')
EXTRA = "pip install 'align-anything[environments]'"
BY_REWARD = 'reward'
DIGITS = 3
NUMBER = re.compile(r'-?\d+(?:\.\d+)?(?:e-?\d+)?')
COLOUR = re.compile(r'\x1b\[[\d;]*m')
HIGHLIGHT = re.compile(rf'(?:{COLOUR.pattern})+([^\x1b]+)\x1b\[0m')


@register_environment('gymnasium')
class Gymnasium(Environment):
    """An environment of gymnasium whose actions are discrete, or numbers in a box.

    Of what a turn says in words the last action is done, or the last numbers, as many as an action has. Of policies
    that write actions each step of a turn is done, numbers as far as the box goes. One that ends itself is done; one
    that its time limit ends is unfinished. It is never stepped after either, so that what resets itself mixes no
    episodes.

    Args:
        id: its name, such as `MiniGrid-Empty-5x5-v0`; `module:Name-v0` imports the module first.
        options: arguments of `gymnasium.make`.
        actions: words for its actions, in their order, by default the names that it has for them, else their numbers;
            or names for the numbers of an action.
        observation: what is shown of it: the `values` of what it observes, what it draws in text (`ansi`), or a picture
            (`image`) with the texts among the values.
        pixels: length that the longer side of a picture is brought to; None leaves it.
        rules: what is said before the first observation; by default which actions there are.
        cost: key of `info` whose number is a cost of each turn; where there is none it cost nothing.
        success: key of `info` that tells of success, or `reward`: it ended itself, with a reward above 0.

    Raises:
        WorldError: there is no such environment, its actions are something else, or not as many as words.
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
        self._do = _Words(self._world, id, actions) if _is_discrete(self._world) else _Numbers(self._world, id, actions)
        self.actions, self.succeeds = self._do.space, success is not None
        self._shown, self._pixels, self._cost, self._success = observation, pixels, cost, success
        self._rules = self._do.rules if rules is None else rules
        self._over = True
        self._told_of: set[str] = set()

    def reset(self, row: Mapping[str, Any], seed: int) -> Observation:
        """Begins with the seed."""
        observed, info = self._world.reset(seed=seed)
        self._over, self._told_of = False, set(map(str, info))
        return self._observation(observed, self._rules)

    def step(self, said: Said) -> Step:
        """Does what is said; where that is no action, asks for one."""
        if self._over:
            raise WorldError('the episode is over, and a further turn came.')
        todo = self._todo(said)
        if not todo:
            return Step(Observation(self._do.rules), costs=self._costs({}))
        whole, costs = 0.0, Counter(self._costs({}))
        for action in todo:
            observed, reward, terminated, truncated, info = self._world.step(action)
            self._over = bool(terminated or truncated)
            whole += float(reward)
            costs.update(self._costs(info))
            self._told_of.update(map(str, info))
            if self._over:
                break
        if self._over:
            self._check_names()
        return Step(
            self._observation(observed),
            reward=whole,
            costs=dict(costs),
            done=bool(terminated),
            truncated=bool(truncated),
            info=self._told(bool(terminated), float(reward), info) if self._over else {},
        )

    def close(self) -> None:
        """Closes it."""
        self._world.close()

    def _todo(self, said: Said) -> list[Any]:
        """The actions that a turn says, in order."""
        return self._do.said(said.text) if said.actions is None else self._do.done(said.actions)

    def _costs(self, info: Mapping[str, Any]) -> dict[str, float]:
        return {} if self._cost is None else {self._cost: float(info.get(self._cost, 0.0))}

    def _check_names(self) -> None:
        """Raises WorldError where a whole episode told nothing of a name, and something of one that is much like it.

        What happens seldom, such as a cost, may be told of only then.
        """
        for option, name in (('cost', self._cost), ('success', self._success)):
            if name in (None, BY_REWARD, *self._told_of):
                continue
            if hint := nearest(name, sorted(self._told_of)):
                told = ', '.join(sorted(self._told_of))
                raise WorldError(
                    f"option '{option}': the info of a whole episode has no '{name}'.{hint} It has: {told}."
                )

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
    # Pictures are rendered without a screen.
    os.environ.setdefault('SDL_VIDEODRIVER', 'dummy')
    try:
        import gymnasium

        if id.startswith(OF_MINIGRID):
            importlib.import_module('minigrid')
    except ImportError as error:
        raise WorldError(f"the environment 'gymnasium' needs {error.name}: {EXTRA}") from error
    try:
        rendered = {} if mode is None else {'render_mode': mode}
        return gymnasium.make(id, disable_env_checker=True, **rendered, **options)
    except FOREIGN_FAULTS as error:
        raise WorldError(f"gymnasium makes no '{id}': {type(error).__name__}: {error}") from error


def _is_discrete(world: Any) -> bool:
    from gymnasium.spaces import Discrete

    return type(world.action_space) is Discrete


class _Words:
    """Discrete actions, by words."""

    def __init__(self, world: Any, id: str, given: Sequence[str] | None) -> None:
        self._first, number = int(world.action_space.start), int(world.action_space.n)
        own = getattr(world.unwrapped, 'actions', None)
        names = [action.name for action in own] if isinstance(own, type) and len(own) == number else []
        words = list(given or names or map(str, range(self._first, self._first + number)))
        _check(id, words, number, 'actions')
        self._lowered = [word.lower() for word in words]
        self.space = ActionSpace(names=tuple(words))
        self.rules = f'Say one of: {", ".join(words)}.'

    def said(self, text: str) -> list[int]:
        """The last one in a text."""
        words = '|'.join(re.escape(word) for word in sorted(self._lowered, key=len, reverse=True))
        found = re.findall(rf'(?<!\w)(?:{words})(?!\w)', text.lower())
        return [self._first + self._lowered.index(word) for word in found[-1:]]

    def done(self, actions: Actions) -> list[int]:
        """Those of a policy, of which what has no name here is none."""
        names = [name.lower() for name in actions.names]
        return [self._first + self._lowered.index(name) for name in names if name in self._lowered]


class _Numbers:
    """Actions of numbers between bounds."""

    def __init__(self, world: Any, id: str, given: Sequence[str] | None) -> None:
        from gymnasium.spaces import Box

        box = world.action_space
        if type(box) is not Box:
            raise WorldError(f"'{id}' has actions of {box}; those here are discrete, or numbers in a box.")
        self._low, self._high, self._shape, self._kind = box.low, box.high, box.shape, box.dtype
        names = list(given or (f'a{number}' for number in range(box.low.size)))
        _check(id, names, box.low.size, 'numbers in an action')
        self.space = ActionSpace(dimensions=tuple(names))
        bounds = zip(names, box.low.flatten(), box.high.flatten(), strict=True)
        told = ', '.join(f'{name} from {low:g} to {high:g}' for name, low, high in bounds)
        self.rules = f'Say the numbers of an action: {told}.'

    def said(self, text: str) -> list[Any]:
        """That of the last numbers in a text."""
        size = self._low.size
        found = [float(number) for number in NUMBER.findall(text)][-size:]
        return [self._within(found)] if len(found) == size else []

    def done(self, actions: Actions) -> list[Any]:
        """Those of a policy. Raises WorldError where they have another number of dimensions."""
        if actions.values is None or actions.values.shape[1] != self._low.size:
            told = 'names' if actions.values is None else f'{actions.values.shape[1]} numbers'
            raise WorldError(f'an action has {self._low.size} numbers here, and the policy writes {told}.')
        return [self._within(step) for step in actions.values.tolist()]

    def _within(self, numbers: Sequence[float]) -> Any:
        return numpy.asarray(numbers).reshape(self._shape).clip(self._low, self._high).astype(self._kind)


def _check(id: str, words: Sequence[str], number: int, what: str) -> None:
    if len(words) != number or len({word.lower() for word in words}) < number:
        raise WorldError(f"'{id}' has {number} {what}, which need as many different words, and there are {words}.")


def _plain(rendered: Any) -> str:
    """What is rendered for a terminal: what stands out by its colour stands in brackets."""
    return COLOUR.sub('', HIGHLIGHT.sub(r'[\1]', str(rendered)))


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
