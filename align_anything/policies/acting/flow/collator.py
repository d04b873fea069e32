"""Episodes to a Batch for a model that denoises chunks, in the data loader's workers: picklable, and without weights.

Two kinds of responses have units, and each batch holds one kind:

- chunks of data, or generated: `media = {'values': (turns, chunk, numbers), 'said': (turns, chunk)}`, with the `ids` of
  each turn the numbers of draws of a noise level and noise;
- denoising steps of a rollout: beside these, as of media, `media = {'sample': (S, chunk, numbers), 'next': …, 'level':
  (S,), 'next_level': (S,), 'first_level': (S,)}` float32, with `ids` the numbers of the steps.

Both may hold `companion/<role>`, `(units, …)`: what another policy predicted of the units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import reduce

import numpy
import torch
from torch import Tensor

from align_anything.core.errors import ModelError, SampleError
from align_anything.core.store import digest
from align_anything.core.types import COMPANION, Batch, Cost, Example, Piece, Skipped
from align_anything.models.acting.pi0 import BLANK, TEXT_TOKENS, Pi0Spec, looks
from align_anything.models.acting.pieces import FRAMES, GOAL, LOOK, OBSERVATION, SAID, STATE, VALUES
from align_anything.models.diffusion.process import noised, target
from align_anything.policies.denoising.collator import (
    FIRST_LEVEL,
    LEVEL,
    NEXT,
    NEXT_LEVEL,
    SAMPLE,
)
from align_anything.policies.denoising.transitions import Kernel, Step, step_values


@dataclass
class Seen:
    """What the model reads of each step that something hangs on, once however many units do.

    Attributes:
        ids: the tokens of its pictures and of the instruction, `(steps, length)`.
        mask: which of them there are, `(steps, length)`.
        frames: `(steps, cameras, 3, height, width)`.
        cameras: which pictures there are, `(steps, cameras)` bool.
        state: `(steps, numbers)`.
    """

    ids: Tensor
    mask: Tensor
    frames: Tensor
    cameras: Tensor
    state: Tensor


@dataclass
class FlowInputs:
    """What a model that denoises chunks is given, and what its predictions are compared with.

    A batch without units has one row, which trains nothing, so that the model runs on every rank.

    Attributes:
        seen: the steps of the batch.
        step_of: which of them each row has, `(rows,)`.
        sample: noised chunks, or those before denoising steps, `(rows, chunk, numbers)`.
        level: their noise levels, `(rows,)`.
        counted: which numbers of a row count, `(rows, chunk, numbers)` bool.
        target: of draws, the velocity that the model should predict, `(rows, chunk, numbers)`.
        next: of denoising steps, the chunk that followed, and their levels.
        companions: predictions of other policies, `(rows, …)` by role.
    """

    seen: Seen
    step_of: Tensor
    sample: Tensor
    level: Tensor
    counted: Tensor
    target: Tensor | None = None
    next: Tensor | None = None
    step: Step | None = None
    companions: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class FlowCollator:
    """Lays units behind each other.

    What is random of a draw depends on the seed, the epoch, the row and what it begins with, the number of the turn in
    its episode and the number of the draw: episodes that are compared meet the same level and the same noise in the
    same turn, however rows are cut into micro-batches and whoever scores them.

    Numbers that fill actions up to what the model says, and steps behind the end of a chunk that was cut, weigh nothing
    in any score; of denoising steps only those steps of a chunk do that are executed.

    Attributes:
        spec: the rules of the model.
        seed: of the run.
        kernel: how the steps of rollouts sampled; None where there are none.
        grid: of evaluations, at how many levels each chunk is scored; None in training.
        kinds: kinds of media that prompts hold.
    """

    spec: Pi0Spec
    seed: int = 0
    kernel: Kernel | None = None
    grid: int | None = None
    kinds: tuple[str, ...] = ('image',)
    layout: str = 'chunks'

    def __post_init__(self) -> None:
        if self.kernel is not None:
            self.kernel.check(self.spec.process)

    def cost(self, example: Example) -> Cost:
        """Steps that are read and units, by what the model has of each in its sequence."""
        length = self._length(example.prompt)
        pieces = [*example.responses, *([] if example.unmatched is None else [example.unmatched])]
        units = [piece.units for piece in pieces]
        own = sum(units[: len(example.responses)])
        if example.unmatched is None:
            return Cost(own, length, float(own * length))
        return Cost(own, length, float(sum(units) * length), units[-1], length)

    def size(self, examples: Sequence[Example]) -> int:
        """Tokens of all units of a micro-batch."""
        return reduce(Cost.beside, map(self.cost, examples), Cost(0, 0)).size

    def _length(self, prompt: Piece) -> int:
        pictures = prompt.media[FRAMES].shape[1] if FRAMES in prompt.media else 1
        return pictures * self.spec.processor.image_seq_length + TEXT_TOKENS + 1 + self.spec.chunk_shape[0]

    def __call__(self, examples: Sequence[Example], skipped: Sequence[Skipped] = ()) -> Batch:
        """Returns the Batch of these Examples; of none, a batch that computes and trains nothing.

        Raises TrainingError where a denoising step that is trained was taken without noise.
        """
        if self.grid is not None:
            examples = [_with_draws(example, self.grid) for example in examples]
        owned = [(number, piece) for number, example in enumerate(examples) for piece in example.responses]
        pieces = [piece for _, piece in owned]
        counts = torch.tensor([piece.units for piece in pieces], dtype=torch.long)
        units = int(counts.sum())
        inputs = self._inputs(examples, owned) if units else self._nothing()
        names = [name for name in pieces[0].per_unit if all(name in own.per_unit for own in pieces)] if pieces else []
        per_unit = {name: torch.cat([piece.per_unit[name] for piece in pieces]) for name in names}
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
            per_unit=per_unit | step_values(self.spec.process, self.kernel, inputs.step),
            stats={
                'examples': len(examples),
                'units': units,
                'steps': len(inputs.seen.ids) if units else 0,
                'images': int(inputs.seen.cameras.sum()) if units else 0,
            },
        )

    def see(self, prompts: Sequence[Piece]) -> Seen:
        """Returns what the model reads of the last step in each of these prompts."""
        return self._seen([_Look(prompt, prompt, -1) for prompt in prompts])

    def _nothing(self) -> FlowInputs:
        blank = self.spec.blank()
        (response,) = blank.responses
        response.weights = torch.ones(1)
        return self._inputs([blank], [(0, response)])

    def _inputs(self, examples: Sequence[Example], owned: Sequence[tuple[int, Piece]]) -> FlowInputs:
        lines: dict[tuple[int, int, int], int] = {}
        found: list[_Look] = []
        rows: list[dict[str, Tensor]] = []
        for which, (number, piece) in enumerate(owned):
            used = piece.weights != 0
            if not used.any():
                continue
            prompt = examples[number].prompt
            before = int((prompt.ids == OBSERVATION).sum())
            turns = looks(piece.ids)[used]
            step_of = []
            for turn in turns.tolist():
                # Responses of one Example share what their prompt ends with.
                key = (number, -1, 0) if turn == 0 else (number, which, turn)
                if key not in lines:
                    lines[key] = len(found)
                    found.append(_Look(prompt, piece if turn else prompt, turn - 1))
                step_of.append(lines[key])
            if SAMPLE in piece.media:
                own = {name: piece.media[name][used[piece.ids != OBSERVATION]] for name in _STEPS}
                own['counted'] = self.executed().expand(len(turns), -1, -1)
            else:
                own = self._noised(examples[number], piece, used, before)
            companions = {name: value for name, value in piece.media.items() if name.startswith(COMPANION)}
            rows.append(own | companions | {'step_of': torch.tensor(step_of)})
        if any(row.keys() != rows[0].keys() for row in rows):
            raise ModelError('a micro-batch holds either chunks or steps of rollouts, with the same companions.')
        joined = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        inputs = FlowInputs(
            seen=self._seen(found),
            step_of=joined['step_of'],
            sample=joined[SAMPLE],
            level=joined[LEVEL],
            counted=joined['counted'],
            target=joined.get('target'),
            companions={
                name.removeprefix(COMPANION): value for name, value in joined.items() if name.startswith(COMPANION)
            },
        )
        if NEXT in joined:
            inputs.next = joined[NEXT]
            inputs.step = Step(*(joined[name] for name in (LEVEL, NEXT_LEVEL, FIRST_LEVEL)))
        return inputs

    def executed(self) -> Tensor:
        """Returns which numbers of a chunk decide what is done, `(chunk, numbers)` bool."""
        counted = torch.zeros(self.spec.chunk_shape, dtype=torch.bool)
        counted[: self.spec.space.executed, : self.spec.dimensions] = True
        return counted

    def _noised(self, example: Example, piece: Piece, used: Tensor, before: int) -> dict[str, Tensor]:
        """Draws of the chunks of a piece, behind so many observations."""
        turns = looks(piece.ids)
        # A chunk for each turn of the policy, and a turn may lie before the first observation of the piece.
        chunk_of = torch.unique_consecutive(turns[piece.ids != OBSERVATION]).tolist()
        chunks = torch.tensor([chunk_of.index(turn) for turn in turns[used].tolist()])
        clean, said = piece.media[VALUES][chunks], piece.media[SAID][chunks]
        drawn = zip(turns[used].tolist(), piece.ids[used].tolist(), strict=True)
        draws = [self._draw(example, before + turn, number) for turn, number in drawn]
        level, noise = torch.stack([own[0] for own in draws]), torch.stack([own[1] for own in draws])
        counted = said[:, :, None].expand(clean.shape).clone()
        counted[:, :, self.spec.dimensions :] = False
        process = self.spec.process
        return {
            SAMPLE: noised(process, clean, noise, level),
            LEVEL: level,
            'target': target(process, clean, noise, level),
            'counted': counted,
        }

    def _draw(self, example: Example, turn: int, number: int) -> tuple[Tensor, Tensor]:
        """The level `()` and the noise of a draw, float32."""
        config = self.spec.config
        # Evaluations of other seeds, and after other epochs, are to be compared.
        of_run = ('evaluation',) if self.grid is not None else (self.seed, example.epoch)
        # Windows of one row begin with other observations.
        begins = int(example.prompt.token_tensors[LOOK][-1])
        seed = int(digest(*of_run, *example.identity, begins, turn, number)[:15], 16)
        noise = torch.randn(self.spec.chunk_shape, generator=torch.Generator().manual_seed(seed))
        if self.grid is not None:
            share = (number + 0.5) / self.grid
        else:
            beta = config.time_sampling_beta_alpha, config.time_sampling_beta_beta
            share = numpy.random.default_rng(seed).beta(*beta)
        return torch.tensor(share * config.time_sampling_scale + config.time_sampling_offset).float(), noise

    def _seen(self, found: Sequence[_Look]) -> Seen:
        images, config = self.spec.processor.image_seq_length, self.spec.config
        frames = [own.media(FRAMES) for own in found]
        goals = [own.prompt.media[GOAL][0] for own in found]
        most = max(len(own) for own in frames)
        ids = [
            torch.cat([goal.new_full((len(own) * images,), config.vlm_config.image_token_id), goal[goal != BLANK]])
            for own, goal in zip(frames, goals, strict=True)
        ]
        mask = [torch.ones(len(own), dtype=torch.long) for own in ids]
        filled = torch.nn.utils.rnn.pad_sequence
        there = torch.arange(most) < torch.tensor([len(own) for own in frames])[:, None]
        return Seen(
            ids=filled(ids, batch_first=True, padding_value=self.spec.tokenizer.pad_token_id),
            mask=filled(mask, batch_first=True),
            frames=filled(frames, batch_first=True),
            cameras=there,
            state=torch.stack([own.media(STATE) for own in found]),
        )


_STEPS = (SAMPLE, NEXT, LEVEL, NEXT_LEVEL, FIRST_LEVEL)


@dataclass(frozen=True)
class _Look:
    """An observation: the number of it among those of a piece, and the prompt that says what is to be done."""

    prompt: Piece
    piece: Piece
    number: int

    def media(self, name: str) -> Tensor:
        if name not in self.piece.media:
            raise SampleError('the episode begins without pictures, which the first action should hang on')
        return self.piece.media[name][self.number]


def _with_draws(example: Example, number: int) -> Example:
    """The Example with so many draws of each chunk that is scored at all."""
    unmatched = None if example.unmatched is None else _spread(example.unmatched, number)
    return replace(example, responses=[_spread(piece, number) for piece in example.responses], unmatched=unmatched)


def _spread(piece: Piece, number: int) -> Piece:
    if SAMPLE in piece.media or not piece.units:
        return piece
    ids, weights = [], []
    turns = looks(piece.ids)
    for turn in turns.unique().tolist():
        own = (turns == turn) & (piece.ids != OBSERVATION)
        if turn:
            ids.append(torch.tensor([OBSERVATION]))
            weights.append(torch.zeros(1))
        if own.any():
            weight = float(piece.weights[own].sum()) / number
            ids.append(torch.arange(number))
            weights.append(torch.full((number,), weight))
    length = sum(map(len, ids))
    return replace(
        piece,
        ids=torch.cat(ids),
        weights=torch.cat(weights),
        token_tensors={name: torch.zeros(length, dtype=torch.long) for name in piece.token_tensors},
    )
