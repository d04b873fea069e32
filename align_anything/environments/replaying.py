"""Recorded episodes done again in their environment: whether the same comes of them, and what of them is wrong if not.

What is wrong with a recording is seen in no loss: a picture that is upside down, a gripper of the other sign, a clock
that is one step late. A policy learns it all the same, and fails where it acts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
from typing import Any

import numpy

from align_anything.core.actions import Actions, ActionSpace
from align_anything.core.errors import FOREIGN_FAULTS, AlignAnythingError, SampleError, WorldError
from align_anything.core.types import Conversation, Media
from align_anything.datasets.media import decode_conversations
from align_anything.datasets.media.image import finished
from align_anything.datasets.spoken_actions import joined_actions
from align_anything.datasets.trajectories import steps_of
from align_anything.datasets.windows import episode_of
from align_anything.environments.base import Environment, Said
from align_anything.environments.observing import Limits, shown

SIDE = 32
"""Pixels of a side by which pictures are compared."""
SAME = 2.0
"""Of 255, by how much pictures differ on average that are the same but for what a video loses."""
BETTER = 0.5
"""An explanation counts that leaves at most this share of a difference."""
TURNED: Mapping[str, Callable[[numpy.ndarray], numpy.ndarray]] = {
    'rotated by 180 degrees': lambda pictures: pictures[..., ::-1, ::-1, :],
    'flipped upside down': lambda pictures: pictures[..., ::-1, :, :],
    'mirrored': lambda pictures: pictures[..., ::-1, :],
    'rotated by 90 degrees': lambda pictures: numpy.rot90(pictures, 1, (-3, -2)),
    'rotated by 270 degrees': lambda pictures: numpy.rot90(pictures, 3, (-3, -2)),
    'of other colours: red and blue are exchanged': lambda pictures: pictures[..., ::-1],
}
SHIFTED = {1: 'late', -1: 'early'}


@dataclass(frozen=True)
class Recorded:
    """An episode to be done again.

    Attributes:
        name: what reports call it.
        actions: of all steps.
        pictures: before each step, `(steps, cameras, SIDE, SIDE, 3)` float; None where it shows none.
        options: how its pictures were turned when they were read, which an environment's are then too.
        row: what `reset` gets, with the prompt as `messages`.
        seed: of the episode; None where the recording does not say it.
        success, reward, cost: what came of it, None where nobody said.
        dimensions: names of the numbers of an action.
    """

    name: str
    actions: Actions
    pictures: numpy.ndarray | None
    options: Mapping[str, Any]
    row: Mapping[str, Any]
    seed: int | None
    success: bool | None = None
    reward: float | None = None
    cost: float | None = None
    dimensions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Came:
    """What came of actions in an environment.

    Attributes:
        pictures: what was seen before each step, as those of `Recorded`; fewer where the episode ended before.
        success: whether it said so; None where it said nothing.
        reward: of all steps.
        cost: of all steps.
        steps: that were done.
        ended: whether the environment ended it.
    """

    pictures: numpy.ndarray | None
    success: bool | None
    reward: float
    cost: float
    steps: int
    ended: bool


@dataclass
class Compared:
    """What replaying told of some episodes.

    Attributes:
        episodes: how many were done again.
        alike: how many did the same, of those that tell, by what they told: `success`, `reward`, `cost`, `pictures`.
        told: how many of them told it.
        findings: what is wrong, each with how many episodes say so.
        left_out: which rows were no episodes, and why, a line for each reason.
    """

    episodes: int = 0
    alike: dict[str, int] = field(default_factory=dict)
    told: dict[str, int] = field(default_factory=dict)
    findings: dict[str, int] = field(default_factory=dict)
    left_out: str = ''

    @property
    def agrees(self) -> bool:
        """Whether everything came as it was recorded."""
        return not self.findings and not self.left_out and self.alike == self.told

    def lines(self) -> list[str]:
        """Returns what to tell, a line each."""
        found = [f'{self.episodes} episodes done again']
        found += [f'the same {what}: {self.alike.get(what, 0)} of {count}' for what, count in self.told.items()]
        found += [f'{count} of {self.episodes} episodes: {told}' for told, count in self.findings.items()]
        silent = [what for what in ('success', 'reward', 'pictures') if what not in self.told]
        if silent:
            found.append(f'the recordings tell no {" and no ".join(silent)}, so nothing was compared there')
        if self.left_out:
            found.append(f'rows that were left out:\n{self.left_out}')
        return found


def recorded_of(name: str, conversation: Conversation, meta: Mapping[str, Any]) -> Recorded:
    """Returns a row as an episode to be done again, its media not decoded yet.

    Raises SampleError for a conversation that is no episode of single steps, and for pictures that cannot be read.
    """
    episode = episode_of(conversation)
    if episode is None:
        raise SampleError('the row is no episode in which every answer is one step of actions.')
    options = next((part['image'].options for part in _images(conversation) if type(part['image']) is Media), {})
    (decoded,) = decode_conversations([conversation])
    opening = [turn for turn in decoded if turn['role'] == 'user'][:1]
    rewards, costs = meta.get('rewards'), meta.get('costs')
    return Recorded(
        name,
        joined_actions(episode.actions),
        _together([_pictures(turn, {}) for turn in decoded if turn['role'] == 'user'][: len(episode)]),
        {key: options[key] for key in ('rotate', 'flip', 'size') if options.get(key)},
        {**meta, 'messages': opening, 'source': name},
        None if meta.get('seed') is None else int(meta['seed']),
        None if meta.get('success') is None else bool(meta['success']),
        float(sum(rewards)) if rewards else meta.get('reward'),
        float(sum(costs)) if costs else meta.get('cost'),
        tuple(meta.get('dimensions') or ()),
    )


def do_again(environment: Environment, recorded: Recorded, actions: Actions | None = None) -> Came:
    """Returns what comes of the recorded actions, or of others, from the recorded seed.

    Raises WorldError where the environment fails, or the recording says no seed.
    """
    if recorded.seed is None:
        raise WorldError(
            f"{recorded.name}: the recording does not say from which 'seed' it began, so nobody can begin as it did. "
            'Record the seed of each episode as a column of its row.'
        )
    done = recorded.actions if actions is None else actions
    unfit = '' if environment.actions is None else _space_of(recorded).unfit(environment.actions)
    if unfit:
        raise WorldError(f'{recorded.name}: what it records cannot be done in this environment: {unfit}.')
    try:
        return _done(environment, recorded, done)
    except AlignAnythingError:
        raise
    except FOREIGN_FAULTS as error:
        raise WorldError(f'{recorded.name}: the environment failed with {type(error).__name__}: {error}.') from error


def _space_of(recorded: Recorded) -> ActionSpace:
    if recorded.actions.values is None:
        return ActionSpace(names=tuple(dict.fromkeys(recorded.actions.names)))
    return ActionSpace(dimensions=_dimensions(recorded))


def _dimensions(recorded: Recorded) -> tuple[str, ...]:
    size = 0 if recorded.actions.values is None else recorded.actions.values.shape[1]
    return recorded.dimensions or tuple(f'x{number}' for number in range(size))


def _done(environment: Environment, recorded: Recorded, actions: Actions) -> Came:
    limits = Limits(media=64)
    seen = shown(environment.reset(recorded.row, recorded.seed), limits)
    pictures = [_pictures(seen[-1] if seen else {'content': []}, recorded.options)]
    reward, cost, success, ended, steps = 0.0, 0.0, None, False, 0
    for number in range(len(actions)):
        step = environment.step(Said('', actions=steps_of(actions, number, 1)))
        steps += 1
        reward += step.reward or 0.0
        cost += sum(step.costs.values())
        if step.info.get('success') is not None:
            success = bool(step.info['success'])
        if step.done:
            ended = True
            break
        seen = shown(step.observation, limits) if step.observation is not None else []
        pictures.append(_pictures(seen[-1] if seen else {'content': []}, recorded.options))
    score = environment.score()
    return Came(_together(pictures), success, reward + (score or 0.0), cost, steps, ended)


def compare(environment: Environment, episodes: Sequence[Recorded]) -> Compared:
    """Does episodes again and says what came otherwise, and why as far as something explains it.

    Raises WorldError as `do_again` does.
    """
    found = Compared()
    for recorded in episodes:
        found.episodes += 1
        came = do_again(environment, recorded)
        pairs = (
            ('success', recorded.success, came.success),
            ('reward', recorded.reward, came.reward),
            ('cost', recorded.cost, came.cost),
        )
        for what, told, again in pairs:
            if told is not None:
                _count(found.told, what)
                same = abs(float(told) - float(again or 0.0)) < 1e-6
                found.alike[what] = found.alike.get(what, 0) + same
        steps = len(recorded.actions)
        if came.ended and came.steps < steps:
            _count(found.findings, _ended_early(steps - came.steps))
        told = _of_pictures(recorded, came, found)
        told += list(_of_actions(environment, recorded, came))
        for line in told:
            _count(found.findings, line)
    return found


def _ended_early(left: int) -> str:
    some = f'{left} actions are' if left > 1 else 'one action is'
    return f'the environment ends the episode before its last action: {some} too many'


def _count(counts: dict[str, int], what: str) -> None:
    counts[what] = counts.get(what, 0) + 1


def _of_pictures(recorded: Recorded, came: Came, found: Compared) -> list[str]:
    """What is wrong with the pictures of an episode."""
    if recorded.pictures is None or came.pictures is None:
        return []
    _count(found.told, 'pictures')
    mine, theirs = recorded.pictures, came.pictures
    if mine.shape[1] != theirs.shape[1]:
        return [f'a step is recorded by {mine.shape[1]} cameras, and the environment shows {theirs.shape[1]} pictures']
    plain = _difference(mine, theirs)
    found.alike.setdefault('pictures', 0)
    if plain <= SAME and not any(late < BETTER * plain for _, late in _shifts(mine, theirs)):
        found.alike['pictures'] += 1
        return []
    explained = [
        (f'the recorded pictures are {name}', _difference(turn(mine), theirs)) for name, turn in TURNED.items()
    ]
    explained += _shifts(mine, theirs)
    for order in permutations(range(mine.shape[1])) if 1 < mine.shape[1] < 5 else ():
        told = ', '.join(str(number + 1) for number in order)
        explained.append((f'the cameras are recorded in another order ({told})', _difference(mine[:, order], theirs)))
    told, least = min(explained, key=lambda pair: pair[1])
    if least < BETTER * plain:
        return [told]
    found.alike['pictures'] += plain <= SAME
    return [] if plain <= SAME else [f'pictures differ by {plain:.0f} of 255, and nothing that was tried explains it']


def _shifts(mine: numpy.ndarray, theirs: numpy.ndarray) -> list[tuple[str, float]]:
    """How far recorded pictures are from those a step later and earlier."""
    steps = min(len(mine), len(theirs))
    if steps < 3:
        return []
    return [
        (
            f'the recorded pictures are one step {word}: frames and actions are shifted against each other',
            _difference(mine[max(0, -by) : steps - max(0, by)], theirs[max(0, by) : steps - max(0, -by)]),
        )
        for by, word in SHIFTED.items()
    ]


def _of_actions(environment: Environment, recorded: Recorded, came: Came) -> Iterator[str]:
    """Which change of the actions makes an episode succeed that was recorded as a success and fails."""
    if not recorded.success or came.success:
        return
    for told, actions in _changes(recorded):
        if do_again(environment, recorded, actions).success:
            yield told
            return
    yield 'the recorded success does not come again, and no change that was tried brings it'


def _changes(recorded: Recorded) -> Iterator[tuple[str, Actions]]:
    actions = recorded.actions
    count = len(actions)
    size = 0 if actions.values is None else actions.values.shape[1]
    names = _dimensions(recorded)
    if actions.values is not None:
        for number in reversed(range(size)):
            signs = numpy.ones(size)
            signs[number] = -1
            told = f"with the other sign of '{names[number]}' the episode succeeds: the recording has it turned round"
            yield told, replace(actions, values=actions.values * actions.values.new_tensor(signs))
    if count > 1:
        late = 'without the first action the episode succeeds: actions are recorded one step late'
        yield late, steps_of(actions, 1, count - 1)
        early = 'with the first action done twice the episode succeeds: actions are recorded one step early'
        yield early, joined_actions([steps_of(actions, 0, 1), actions])
    for number in reversed(range(size)):
        # 0 and 1 where the environment wants -1 and 1, or the other way about.
        values = actions.values.clone()
        if set(values[:, number].unique().tolist()) <= {0.0, 1.0}:
            values[:, number] = 2 * values[:, number] - 1
            told = f"with '{names[number]}' from -1 to 1 in place of 0 to 1 the episode succeeds"
            yield told, replace(actions, values=values)


def _difference(mine: numpy.ndarray, theirs: numpy.ndarray) -> float:
    """By how much pictures differ on average, of 255, as far as both go."""
    steps = min(len(mine), len(theirs))
    return float(numpy.abs(mine[:steps] - theirs[:steps]).mean()) if steps else 0.0


def _images(conversation: Conversation) -> list[Mapping[str, Any]]:
    return [part for turn in conversation for part in turn['content'] if part['type'] == 'image' and 'image' in part]


def _pictures(turn: Mapping[str, Any], options: Mapping[str, Any]) -> numpy.ndarray | None:
    """The decoded pictures of a turn, `(cameras, SIDE, SIDE, 3)`, turned as the options say; None without any."""
    from PIL import Image

    images = [finished(part['image'], options) for part in _images([turn])]
    small = [image.convert('RGB').resize((SIDE, SIDE), Image.Resampling.BOX) for image in images]
    return numpy.stack([numpy.asarray(image, dtype=numpy.float32) for image in small]) if small else None


def _together(pictures: Sequence[numpy.ndarray | None]) -> numpy.ndarray | None:
    """The pictures of steps, None where some have none, or not as many as others."""
    shapes = {None if own is None else own.shape for own in pictures}
    return None if len(shapes) != 1 or None in shapes else numpy.stack(list(pictures))
