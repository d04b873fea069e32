"""Episodes to a Batch for a model that acts, in the data loader's workers: picklable, and without weights.

A row is an episode, padded in time; a step is an observation and the action behind it. Pictures lie in one line, those
of a prompt once however many episodes begin with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import reduce

import torch
from torch import Tensor

from align_anything.core.errors import SampleError
from align_anything.core.store import digest
from align_anything.core.types import COMPANION, Batch, Cost, Example, Piece, Skipped
from align_anything.models.acting.pieces import FRAMES, GOAL, LOOK, OBSERVATION, SAID, SENSORS, STATE, VALUES, rows_of
from align_anything.models.acting.spec import ActionSpec
from align_anything.models.acting.spoc import Steps
from align_anything.policies.acting.heads.base import Head, Targets


@dataclass
class ActingInputs:
    """What a model that acts is given, and what its answers are compared with.

    Attributes:
        steps: all that is observed, in one line.
        step_of: which of it each step of each episode has, `(episodes, length)`; -1 for nothing, as behind the last
            action and where the row is filled up.
        previous: the action before each step, `(episodes, length)` or `(episodes, length, numbers + 1)`.
        rows, columns: where the units are in that, `(N,)` each.
        ends: the column behind the last action of each episode, `(episodes,)`.
        targets: the actions of the units.
        companions: predictions of other policies, `(N, …)` by role.
        looks: what tells the observations apart, `(observations,)`.
        first: the number of the first step of each episode, `(episodes,)`; None where all begin with 0.
    """

    steps: Steps
    step_of: Tensor
    previous: Tensor
    rows: Tensor
    columns: Tensor
    ends: Tensor
    targets: Targets
    companions: dict[str, Tensor] = field(default_factory=dict)
    looks: Tensor | None = None
    first: Tensor | None = None


@dataclass(frozen=True)
class ActionCollator:
    """Lays episodes out.

    Attributes:
        spec: the rules of the model.
        head: how its actions are scored.
        behind: whether each row has a step behind its last action, of which nothing is seen: there stand scores of
            whole episodes, and bootstrap values.
        kinds: kinds of media that prompts hold.
        latest: the highest number that the first step of a row may have: windows begin anywhere in an episode, and
            which step they begin with hangs on the seed, the epoch and the row. 0 where rows are whole episodes.
        seed: of the run.
    """

    spec: ActionSpec
    head: Head
    behind: bool = False
    kinds: tuple[str, ...] = ('image',)
    layout: str = 'episodes'
    latest: int = 0
    seed: int = 0

    def cost(self, example: Example) -> Cost:
        """The steps of an Example, which are padded to the longest; its work is what there is to look at."""
        lengths = [_steps(example.prompt, response) for response in example.responses]
        looked = float(sum(lengths) or _steps(example.prompt, None))
        own = Cost(len(lengths), max(lengths, default=0), looked)
        if example.unmatched is None:
            return own
        other = _steps(example.prompt, example.unmatched)
        return Cost(own.rows, own.length, own.work + other, 1, other)

    def size(self, examples: Sequence[Example]) -> int:
        """Steps of a micro-batch, with padding."""
        return reduce(Cost.beside, map(self.cost, examples), Cost(0, 0)).size

    def __call__(self, examples: Sequence[Example], skipped: Sequence[Skipped] = ()) -> Batch:
        """Returns the Batch of these Examples; of none, a batch that computes and trains nothing."""
        owned = [(number, piece) for number, example in enumerate(examples) for piece in example.responses]
        pieces = [piece for _, piece in owned]
        counts = torch.tensor([piece.units for piece in pieces], dtype=torch.long)
        inputs = self.inputs(examples, owned) if owned else self._nothing()
        names = [name for name in pieces[0].per_unit if all(name in own.per_unit for own in pieces)] if pieces else []
        unmatched = [
            replace(item, responses=[item.unmatched], unmatched=None) for item in examples if item.unmatched is not None
        ]
        return Batch(
            inputs=inputs,
            segments=torch.arange(len(pieces)).repeat_interleave(counts),
            weights=torch.cat([torch.zeros(0), *(piece.weights[piece.weights != 0] for piece in pieces)]),
            num_responses=len(pieces),
            examples_of_responses=torch.tensor([number for number, _ in owned], dtype=torch.long),
            sources=[example.source for example in examples],
            metas=[example.meta for example in examples],
            skipped=list(skipped),
            unmatched=self(unmatched) if unmatched else None,
            per_unit={name: torch.cat([piece.per_unit[name] for piece in pieces]) for name in names},
            stats={
                'examples': len(examples),
                'units': int(counts.sum()),
                'steps': int((inputs.step_of >= 0).sum()) if pieces else 0,
                'padding': int((inputs.step_of < 0).sum()) if pieces else 0,
                'images': len(inputs.steps.frames) * self.spec.config.cameras if pieces else 0,
                'truncated': sum(piece.truncated for piece in pieces),
            },
        )

    def inputs(self, examples: Sequence[Example], owned: Sequence[tuple[int, Piece | None]]) -> ActingInputs:
        """Returns what the model is given of episodes: each with the number of its Example; None has done nothing yet.

        Raises SampleError where one of them begins without pictures.
        """
        for example in examples:
            if FRAMES not in example.prompt.media:
                raise SampleError(f'{example.source}: the episode begins without pictures')
        rows = [_Row(examples[number].prompt, piece, number) for number, piece in owned]
        starts, seen, goal_of = [], [], []
        line = 0
        for number, example in enumerate(examples):
            starts.append(line)
            seen.append(example.prompt)
            goal_of += [number] * _observations(example.prompt)
            line += _observations(example.prompt)
        step_of = []
        for row in rows:
            known = _observations(row.prompt)
            mine = torch.arange(starts[row.number], starts[row.number] + known)
            if row.piece is not None:
                number = _observations(row.piece)
                mine = torch.cat([mine, torch.arange(line, line + number)])
                seen.append(row.piece)
                goal_of += [row.number] * number
                line += number
            step_of.append(torch.cat([mine, torch.full((int(self.behind),), -1)]))
        longest = max(map(len, step_of))
        columns = [row.columns for row in rows]
        goals = [example.prompt.media[GOAL][0] for example in examples]
        goal_mask = [torch.ones(len(goal), dtype=torch.bool) for goal in goals]
        length = self.spec.config.goal_length if self.spec.config.fusion == 'film' else max(map(len, goals))
        sensors = rows_of(seen, SENSORS)
        return ActingInputs(
            steps=Steps(
                frames=rows_of(seen, FRAMES),
                goals=torch.stack([_filled(goal, length, self.spec.tokenizer.pad_token_id) for goal in goals]),
                goal_mask=torch.stack([_filled(mask, length, False) for mask in goal_mask]),
                goal_of=torch.tensor(goal_of),
                sensors={} if sensors is None else dict(zip(self.spec.sensors, sensors.unbind(1), strict=True)),
                state=rows_of(seen, STATE),
            ),
            step_of=torch.stack([_filled(own, longest, -1) for own in step_of]),
            previous=torch.stack([self._previous(row, longest) for row in rows]),
            rows=torch.cat([torch.full((len(own),), number) for number, own in enumerate(columns)]),
            columns=torch.cat(columns),
            ends=torch.tensor([len(own) - 1 for own in step_of]),
            targets=self._targets(rows),
            companions=_companions([row.piece for row in rows if row.piece is not None]),
            looks=torch.cat([piece.token_tensors[LOOK][piece.ids == OBSERVATION] for piece in seen]),
            first=torch.tensor([self._first(examples[row.number]) for row in rows]) if self.latest else None,
        )

    def _first(self, example: Example) -> int:
        return int(digest('first step', self.seed, example.epoch, *example.identity)[:15], 16) % (self.latest + 1)

    def _previous(self, row: _Row, length: int) -> Tensor:
        """The action before each step, as the model reads it."""
        config = self.spec.config
        if config.head == 'categorical':
            done = torch.cat([torch.tensor([config.actions]), row.actions])[:length]
            return _filled(done, length, config.actions + 1)
        found = rows_of(row.pieces, VALUES)
        done = torch.zeros(length, config.chunk * config.dimensions + 1)
        done[0, -1] = 1.0
        if found is not None:
            done[1 : 1 + len(found), :-1] = found.flatten(1)[: length - 1]
        return done

    def _targets(self, rows: Sequence[_Row]) -> Targets:
        ids = torch.cat([row.piece.ids[row.units] for row in rows if row.piece is not None] or [torch.zeros(0).long()])
        if self.spec.config.head == 'categorical':
            return Targets(ids)
        own = [(row.piece, row.units[row.piece.ids != OBSERVATION]) for row in rows if row.piece is not None]
        values, said = (
            [piece.media[name][chosen] for piece, chosen in own if name in piece.media] for name in (VALUES, SAID)
        )
        return Targets(ids, *(torch.cat(found) if found else None for found in (values, said)))

    def _nothing(self) -> ActingInputs:
        blank = self.spec.blank()
        return self.inputs([blank], [(0, blank.responses[0])])


@dataclass(frozen=True)
class _Row:
    prompt: Piece
    piece: Piece | None
    number: int

    @property
    def pieces(self) -> list[Piece]:
        return [self.prompt] if self.piece is None else [self.prompt, self.piece]

    @property
    def ids(self) -> Tensor:
        return torch.cat([piece.ids for piece in self.pieces])

    @property
    def actions(self) -> Tensor:
        return self.ids[self.ids != OBSERVATION]

    @property
    def units(self) -> Tensor:
        """Which ids of the response are units, `(length,)` bool."""
        return self.piece.weights != 0

    @property
    def columns(self) -> Tensor:
        """The steps in which the units are done."""
        if self.piece is None:
            return torch.zeros(0, dtype=torch.long)
        steps = (self.ids == OBSERVATION).cumsum(0) - 1
        return steps[len(self.prompt) :][self.units]


def _observations(piece: Piece) -> int:
    return int((piece.ids == OBSERVATION).sum())


def _steps(prompt: Piece, response: Piece | None) -> int:
    return _observations(prompt) + (0 if response is None else _observations(response))


def _filled(values: Tensor, length: int, filling: float) -> Tensor:
    more = values.new_full((max(0, length - len(values)), *values.shape[1:]), filling)
    return torch.cat([values, more])[:length]


def _companions(pieces: Sequence[Piece]) -> dict[str, Tensor]:
    """What other policies predicted of the units, where all pieces have it."""
    names = [name for name in pieces[0].media if name.startswith(COMPANION)] if pieces else []
    return {name.removeprefix(COMPANION): torch.cat([piece.media[name] for piece in pieces]) for name in names}
