"""Windows of episodes: some of the steps that a row records, an observation followed by a chunk of what was done."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from align_anything.core.actions import Actions
from align_anything.core.errors import SampleError
from align_anything.core.types import ACTION, Conversation, Message
from align_anything.datasets.spoken_actions import joined_actions
from align_anything.datasets.trajectories import PER_STEP

THINNED_WINDOWS, LEFT_OUT_REPEATS = 3 / 4, 2 / 3
"""Share of the windows that are made of episodes without some repeats, and share of the repeats that are left out."""


class Window(NamedTuple):
    """Which steps of an episode are taken, whatever its length.

    Attributes:
        steps: how many, None for all.
        chunk: how many of them are done in one turn.
        at: where it begins, from 0 for the first possible step to 1 for the last one.
        first: the step at which it begins, instead of `at`.
        thinned: seed by which repeats of actions are left out before; None leaves none out.
    """

    steps: int | None = None
    chunk: int = 1
    at: float = 0.0
    first: int | None = None
    thinned: int | None = None


@dataclass(frozen=True)
class Windows:
    """How the rows of a run are cut.

    Attributes:
        steps: of a window; None for whole episodes, or for one chunk where each window is a row.
        chunk: steps that are done in one turn.
        kind: `random`, one window of each episode in an epoch, or `all`, each of them a row of its own.
        last_steps: probability that a random window is the last one of its episode, in the first and the last epoch.
        epochs: of the run.
        thinned: whether repeats of actions are left out now and then.
        seed: that of the run.
    """

    steps: int | None = None
    chunk: int = 1
    kind: Literal['random', 'all'] = 'random'
    last_steps: tuple[float, float] = (0.0, 0.0)
    epochs: float = 1.0
    thinned: bool = False
    seed: int = 0

    @property
    def length(self) -> int | None:
        """Steps of a window, None for whole episodes."""
        return self.chunk if self.steps is None and self.kind == 'all' else self.steps

    @property
    def cuts(self) -> bool:
        """Whether rows are anything else than whole episodes, one step in each turn."""
        return self.length is not None or self.chunk > 1

    def of(self, row: str, epoch: int) -> Window:
        """Returns the window of a row in an epoch: the same in any worker, on any rank, in a resumed run."""
        generator = random.Random(f'window {self.seed} {epoch} {row}')
        first, last = self.last_steps
        share = first + (last - first) * min(1.0, epoch / max(1, math.ceil(self.epochs) - 1))
        at = 1.0 if generator.random() < share else generator.random()
        thins = self.thinned and self.length is not None and generator.random() < THINNED_WINDOWS
        return Window(self.length, self.chunk, at, thinned=generator.getrandbits(32) if thins else None)

    def starting_at(self, first: int) -> Window:
        """Returns the window that begins with a step."""
        return Window(self.length, self.chunk, first=first)

    def count(self, steps: int) -> int:
        """Returns how many windows an episode of so many steps has, each beginning with another step.

        In all of them the last turn has a step at least: of windows of one chunk there are as many as steps.
        """
        return max(1, steps - max(0, (self.length or steps) - self.chunk))


@dataclass(frozen=True)
class Episode:
    """A conversation of actions, step by step.

    Attributes:
        opening: the turns before the first observation, such as a system prompt.
        instruction: the texts of the first observation, and `leads` whether they stand before what it shows.
        observations: the user turn before each step, without the instruction.
        actions: those of each step.
        beside: what the first turn holds for the whole conversation, such as tools.
    """

    opening: list[Message]
    instruction: list[dict[str, Any]]
    observations: list[Message]
    actions: list[Actions]
    beside: dict[str, Any] = field(default_factory=dict)
    leads: bool = True

    def __len__(self) -> int:
        return len(self.actions)


def episode_of(conversation: Conversation) -> Episode | None:
    """Returns the steps of a conversation in which every answer is one step of actions; None where there is another."""
    begin = next((number for number, turn in enumerate(conversation) if turn['role'] == 'user'), None)
    if begin is None:
        return None
    turns = conversation[begin:]
    pairs = list(zip(turns[::2], turns[1::2], strict=False))
    if not pairs or not all(seen['role'] == 'user' and _is_step(done) for seen, done in pairs):
        return None
    first = pairs[0][0]
    texts = [part for part in first['content'] if part['type'] == 'text']
    pictures = [part for part in first['content'] if part['type'] != 'text']
    shown = {key: value for key, value in {**first, 'content': pictures}.items() if key != 'tools'}
    beside = {'tools': conversation[0]['tools']} if 'tools' in conversation[0] else {}
    observations = [shown, *(seen for seen, _ in pairs[1:])]
    actions = [done['content'][0][ACTION] for _, done in pairs]
    leads = first['content'][:1] == texts[:1]
    return Episode(list(conversation[:begin]), texts, observations, actions, beside, leads)


def _is_step(turn: Message) -> bool:
    parts = turn['content']
    return turn['role'] == 'assistant' and [part['type'] for part in parts] == [ACTION] and len(parts[0][ACTION]) == 1


def numbers_of(window: Window, actions: Sequence[Actions]) -> list[int]:
    """Returns the numbers of the steps of an episode that are in a window, ascending."""
    numbers = list(range(len(actions)))
    if window.steps is None or window.steps >= len(actions):
        # Of an episode that is no longer nothing is left out; a window may begin late all the same.
        return numbers[window.first or 0 :] if window.steps is not None else numbers
    if window.thinned is not None:
        numbers = _thinned(actions, window.steps, window.thinned)
    last = len(numbers) - window.steps
    first = window.first if window.first is not None else min(int(window.at * (last + 1)), last)
    return numbers[first : first + window.steps]


def _thinned(actions: Sequence[Actions], fewest: int, seed: int) -> list[int]:
    """The steps without some of those that repeat the one before, of which at least `fewest` stay."""
    generator = random.Random(seed)
    repeats = [number for number in range(1, len(actions)) if _same(actions[number], actions[number - 1])]
    generator.shuffle(repeats)
    wanted = sum(generator.random() < LEFT_OUT_REPEATS for _ in repeats)
    left_out = set(repeats[: min(wanted, len(actions) - fewest)])
    return [number for number in range(len(actions)) if number not in left_out]


def _same(one: Actions, other: Actions) -> bool:
    if one.values is None or other.values is None:
        return one.names == other.names
    return bool((one.values == other.values).all())


def cut(conversation: Conversation, meta: Mapping[str, Any], window: Window) -> tuple[Conversation, dict[str, Any]]:
    """Returns the window of a conversation in normal form, and `meta` with what it has for each step of it.

    An observation is followed by a chunk of actions, the next one stands behind that chunk. The instruction stands in
    the first one, wherever the window begins. Where the episode ends within a chunk, the chunk is shorter: nothing is
    made up for it, and what a policy pads it with has no weight.

    Raises SampleError for a conversation that has other answers than single steps.
    """
    episode = episode_of(conversation)
    if episode is None:
        raise SampleError(
            'data_cfgs.sliding_window and chunks cut episodes, in which every answer is one step of actions and '
            'follows an observation; this row has other turns. Give one action in each turn, or leave them out.'
        )
    numbers = numbers_of(window, episode.actions)
    turns: Conversation = []
    for start in range(0, len(numbers), window.chunk):
        chunk = numbers[start : start + window.chunk]
        seen = episode.observations[chunk[0]]
        if not start:
            said, shown = episode.instruction, seen['content']
            seen = {**seen, 'content': [*said, *shown] if episode.leads else [*shown, *said]}
        done = joined_actions([episode.actions[number] for number in chunk])
        turns += [seen, {'role': 'assistant', 'content': [{'type': ACTION, ACTION: done}]}]
    whole = [*episode.opening, *turns]
    whole[0] = {**whole[0], **episode.beside}
    return whole, _meta_of(meta, numbers, len(episode))


def _meta_of(meta: Mapping[str, Any], numbers: Sequence[int], steps: int) -> dict[str, Any]:
    found = dict(meta)
    for name in PER_STEP:
        values = meta.get(name)
        if isinstance(values, (list, tuple)) and len(values) == steps:
            found[name] = [values[number] for number in numbers]
    return {**found, 'first_step': numbers[0]}
