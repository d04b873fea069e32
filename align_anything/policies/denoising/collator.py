"""Examples to a Batch for a denoiser, in the data loader's workers: picklable, and without weights.

Two kinds of responses have units, and each batch holds one kind, of one latent shape or of several where the denoiser
takes them:

- a clean sample, of data or generated: `media = {'latents': (…)}`, with `ids` the numbers of draws of a noise level and
  noise, and weights that add up to 1;
- denoising steps of a rollout: `media = {'sample': (S, …), 'next': (S, …), 'level': (S,), 'next_level': (S,),
  'first_level': (S,)}` float32, the sample before and after each trained step and its levels as `transitions.Step` has
  them, with `ids` the numbers of the steps and weights 1.

Both may hold `companion/<role>`, `(units, …)`: what another policy predicted of the units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce

import torch
from torch import Tensor

from align_anything.core.errors import ModelError, SampleError, SettingsError
from align_anything.core.store import digest
from align_anything.core.types import COMPANION, Batch, Cost, Example, Piece, Skipped
from align_anything.models.diffusion.prepared import LATENTS
from align_anything.models.diffusion.process import noised, target, wide
from align_anything.models.diffusion.spec import DiffusionSpec, Given
from align_anything.policies.denoising.noise import Noise, SampledNoise, loss_weight, noise_at, sample_noise
from align_anything.policies.denoising.prediction import Guidance
from align_anything.policies.denoising.transitions import Kernel, Step, step_values

SAMPLE, NEXT = 'sample', 'next'
LEVEL, NEXT_LEVEL, FIRST_LEVEL = 'level', 'next_level', 'first_level'


@dataclass
class DenoisingInputs:
    """What a denoiser is given, and what its predictions are compared with.

    A batch without units has one row, which trains nothing, so that the denoiser runs on every rank.

    Attributes:
        sample: noised samples, or those before steps, `(rows, …)`.
        level: their noise levels, `(rows,)`.
        examples: the Example whose conditions each row has, `(rows,)`.
        conditions: of each Example, `(examples, …)` by name.
        unconditional: the same of their unconditional prompts, of steps that are guided.
        target: of draws, what the denoiser should predict, `(rows, …)`, and how much its error counts, `(rows,)`.
        next: of steps, the sample that followed, `(rows, …)`, and their levels.
        companions: predictions of other policies, `(rows, …)` by role.
        others: the same of samples of other sizes.
        order: where each unit of the batch stands among the rows of this size and the others behind each other, `(N,)`.
    """

    sample: Tensor
    level: Tensor
    examples: Tensor
    conditions: dict[str, Tensor]
    unconditional: dict[str, Tensor] | None = None
    target: Tensor | None = None
    loss_weight: Tensor | None = None
    next: Tensor | None = None
    step: Step | None = None
    companions: dict[str, Tensor] = field(default_factory=dict)
    others: list[DenoisingInputs] = field(default_factory=list)
    order: Tensor | None = None

    @property
    def sizes(self) -> list[DenoisingInputs]:
        """What is given of each size."""
        return [self, *self.others]

    @property
    def rows(self) -> int:
        """Samples of all sizes."""
        return sum(len(own.sample) for own in self.sizes)

    def in_order(self, of_sizes: Sequence[Tensor]) -> Tensor:
        """Returns what rows of each size have, `(rows, …)`, as the units of the batch have it, `(N, …)`."""
        if self.order is None:
            (own,) = of_sizes
            return own
        return torch.cat(list(of_sizes)).index_select(0, self.order)

    def given(self, rows: int | None = None) -> Given:
        """Returns what the denoiser is given of samples of this size, of the first `rows` of them."""
        return Given(self.sample[:rows], self.level[:rows], self.of_rows(self.conditions, rows))

    def unguided(self, rows: int | None = None) -> Given:
        """Returns the same with the unconditional prompts."""
        return Given(self.sample[:rows], self.level[:rows], self.of_rows(self.unconditional or {}, rows))

    def of_rows(self, conditions: Mapping[str, Tensor], rows: int | None = None) -> dict[str, Tensor]:
        """Returns the conditions of Examples as those of each row, `(rows, …)` by name; of the first `rows` of them."""
        return {name: value.index_select(0, self.examples[:rows]) for name, value in conditions.items()}


@dataclass(frozen=True)
class DenoisingCollator:
    """Lays units behind each other. Raises SettingsError for noise and a kernel that the model's process has not.

    What is random of a draw depends on the seed, the epoch, the row and the number of the draw: responses to one
    prompt, also the unmatched one, meet the same level and, where they are of one shape, the same noise, however rows
    are cut into micro-batches and whoever scores them.

    Attributes:
        spec: the family of the pipeline.
        noise: how noise is sampled.
        seed: of the run.
        kernel: how the steps of rollouts sampled; None where there are none.
        guidance: how predictions are guided in rollouts, and so in what scores their steps.
        contrast: of DiffusionNFT, how far the better and the worse policy are from the one that sampled; None for no
            contrast of them.
        grid: of evaluations, at how many levels each clean sample is scored, see `noise_at`; None in training.
        kinds: kinds of media that prompts may hold.
        several: whether samples of several sizes may stand in one micro-batch; the family must allow it.
        work: what ranks even out, for a token and for a pair of tokens of one sample.
    """

    spec: DiffusionSpec
    noise: Noise = field(default_factory=Noise)
    seed: int = 0
    kernel: Kernel | None = None
    guidance: Guidance = field(default_factory=Guidance)
    contrast: float | None = None
    grid: int | None = None
    kinds: tuple[str, ...] = ()
    layout: str = 'latents'
    several: bool = False
    work: tuple[float, float] = (1.0, 0.0)

    def __post_init__(self) -> None:
        self.noise.check(self.spec.process)
        if self.kernel is not None:
            self.kernel.check(self.spec.process)
        if self.contrast is not None and self.spec.process.prediction != 'flow':
            raise SettingsError([f'DiffusionNFT trains flows, and {self.spec.model_type} is none.'])

    def cost(self, example: Example) -> Cost:
        """Units of an Example by the tokens that the denoiser makes of each, and twice the work where it is guided."""
        pieces = example.responses
        units, shapes = sum(piece.units for piece in pieces), {tuple(_shape(piece)) for piece in pieces}
        tokens = max(map(self.spec.tokens, shapes), default=0)
        passes = 2 if self.guidance.is_on and any(SAMPLE in piece.media for piece in pieces) else 1
        work, other = passes * units * self._work(tokens), example.unmatched
        kind = None
        if not self.several:
            kind = (*sorted(shapes), *([tuple(_shape(other))] if other is not None else []))
        if other is None:
            return Cost(units, tokens, work, kind=kind)
        others = self.spec.tokens(_shape(other))
        return Cost(units, tokens, work + other.units * self._work(others), other.units, others, kind=kind)

    def _work(self, tokens: int) -> float:
        return tokens * (self.work[0] + self.work[1] * tokens)

    def size(self, examples: Sequence[Example]) -> int:
        """Tokens of all samples that a micro-batch denoises at once, each as long as the longest."""
        return reduce(Cost.beside, map(self.cost, examples), Cost(0, 0)).size

    def __call__(self, examples: Sequence[Example], skipped: Sequence[Skipped] = ()) -> Batch:
        """Returns the Batch of these Examples; of none, a batch that computes and trains nothing.

        Raises:
            SampleError: their latents are of several shapes where they may not be.
            TrainingError: a step that is trained was taken without noise.
        """
        if self.grid is not None:
            examples = [_with_draws(example, self.grid) for example in examples]
        owned = [(number, piece) for number, example in enumerate(examples) for piece in example.responses]
        pieces = [piece for _, piece in owned]
        counts = torch.tensor([int(piece.weights.count_nonzero()) for piece in pieces], dtype=torch.long)
        if not counts.sum():
            inputs = self._inputs([self.spec.blank()], [(0, self.spec.blank().responses[0])])
        else:
            inputs = self._by_size(examples, owned)
        names = (
            [name for name in pieces[0].per_unit if all(name in piece.per_unit for piece in pieces)] if pieces else []
        )
        per_unit = {name: torch.cat([piece.per_unit[name] for piece in pieces]) for name in names}
        unmatched = [
            replace(item, responses=[item.unmatched], unmatched=None) for item in examples if item.unmatched is not None
        ]
        units = int(counts.sum())
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
            per_unit=per_unit | self._of_steps(inputs),
            stats={
                'examples': len(examples),
                'units': units,
                'latents': sum(own.sample.numel() for own in inputs.sizes) if units else 0,
            },
        )

    def _of_steps(self, inputs: DenoisingInputs) -> dict[str, Tensor]:
        of_sizes = [step_values(self.spec.process, self.kernel, own.step) for own in inputs.sizes]
        return {name: inputs.in_order([own[name] for own in of_sizes]) for name in of_sizes[0]}

    def _by_size(self, examples: Sequence[Example], owned: Sequence[tuple[int, Piece]]) -> DenoisingInputs:
        """What is given of each size, those with the fewest tokens first, so that equally long ones are neighbours."""
        pieces: dict[tuple[int, ...], list[int]] = {}
        for at, (_, piece) in enumerate(owned):
            if piece.weights.any():
                pieces.setdefault(tuple(_shape(piece)), []).append(at)
        if len(pieces) == 1:
            return self._inputs(examples, owned)
        if not self.several:
            told = ', '.join(
                f'{"×".join(map(str, shape))} ({examples[owned[own[0]][0]].source})' for shape, own in pieces.items()
            )
            raise SampleError(
                f'a micro-batch has latents of one shape, not of {told}: bring them to one size, or bucket them.'
            )
        units = [int(piece.weights.count_nonzero()) for _, piece in owned]
        starts = [sum(units[:at]) for at in range(len(units))]
        made: list[DenoisingInputs] = []
        numbers: list[int] = []
        for _, held in sorted(pieces.items(), key=lambda item: (self.spec.tokens(item[0]), item[0])):
            own = sorted({owned[at][0] for at in held})
            places = {number: place for place, number in enumerate(own)}
            made.append(
                self._inputs(
                    [examples[number] for number in own], [(places[owned[at][0]], owned[at][1]) for at in held]
                )
            )
            numbers += [number for at in held for number in range(starts[at], starts[at] + units[at])]
        return replace(made[0], others=made[1:], order=torch.tensor(numbers).argsort())

    def _inputs(self, examples: Sequence[Example], owned: Sequence[tuple[int, Piece]]) -> DenoisingInputs:
        sampled: dict[tuple[int, int], SampledNoise] = {}
        rows: list[dict[str, Tensor]] = []
        for number, piece in owned:
            used = piece.weights != 0
            if not used.any():
                continue
            if SAMPLE in piece.media:
                own = {name: piece.media[name][used] for name in (SAMPLE, LEVEL, NEXT, NEXT_LEVEL, FIRST_LEVEL)}
            else:
                own = self._noised(examples[number], number, piece, sampled)
            own |= {name: value[used] for name, value in piece.media.items() if name.startswith(COMPANION)}
            rows.append(own | {'examples': torch.full((int(used.sum()),), number)})
        if any(row.keys() != rows[0].keys() for row in rows):
            raise ModelError('a micro-batch holds either clean samples or steps of rollouts, with the same companions.')
        joined = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        inputs = DenoisingInputs(
            sample=joined[SAMPLE],
            level=joined[LEVEL],
            examples=joined['examples'],
            conditions=self.spec.stack([example.prompt.media for example in examples]),
            companions={
                name.removeprefix(COMPANION): value for name, value in joined.items() if name.startswith(COMPANION)
            },
        )
        if NEXT not in joined:
            inputs.target, inputs.loss_weight = joined['target'], joined['loss_weight']
            return inputs
        inputs.next = joined[NEXT]
        inputs.step = Step(*(joined[name] for name in (LEVEL, NEXT_LEVEL, FIRST_LEVEL)))
        if self.guidance.is_on:
            inputs.unconditional = self.spec.stack([_unconditional(example) for example in examples])
        return inputs

    def _noised(
        self, example: Example, number: int, piece: Piece, sampled: dict[tuple[int, int], SampledNoise]
    ) -> dict[str, Tensor]:
        clean, process = wide(piece.media[LATENTS]), self.spec.process
        draws = []
        for of_draw in piece.ids[piece.weights != 0].tolist():
            if (number, of_draw) not in sampled:
                sampled[number, of_draw] = self._sample_noise(example, of_draw, clean.shape)
            draws.append(sampled[number, of_draw])
        level = torch.stack([own.level for own in draws])
        clean = clean.expand(len(draws), *clean.shape)
        return {
            SAMPLE: noised(process, clean, torch.stack([own.added for own in draws]), level),
            LEVEL: level,
            'target': target(process, clean, torch.stack([own.noise for own in draws]), level),
            'loss_weight': loss_weight(self.noise, process, level),
        }

    def _sample_noise(self, example: Example, number: int, shape: Sequence[int]) -> SampledNoise:
        # Evaluations of other seeds, and after other epochs, are to be compared.
        of_run = ('evaluation',) if self.grid is not None else (self.seed, example.epoch)
        seed = int(digest(*of_run, *example.identity, number)[:15], 16)
        generator = torch.Generator().manual_seed(seed)
        if self.grid is not None:
            return noise_at(self.spec.process, (number + 0.5) / self.grid, shape, generator)
        shift = self.spec.shift(shape)
        return sample_noise(self.noise, self.spec.process, shift, shape, generator, self.spec.channel_dim)


def _with_draws(example: Example, number: int) -> Example:
    """The Example with so many draws of each clean sample that is scored at all."""

    def with_draws(piece: Piece) -> Piece:
        if SAMPLE in piece.media or not piece.units:
            return piece
        return replace(piece, ids=torch.arange(number), weights=torch.full((number,), 1 / number))

    unmatched = None if example.unmatched is None else with_draws(example.unmatched)
    return replace(example, responses=[with_draws(piece) for piece in example.responses], unmatched=unmatched)


def _shape(piece: Piece) -> Sequence[int]:
    return piece.media[SAMPLE].shape[1:] if SAMPLE in piece.media else piece.media[LATENTS].shape


def _unconditional(example: Example) -> Mapping[str, Tensor]:
    if example.unconditional is None:
        raise ModelError(f'{example.source} has no unconditional prompt, which guidance leads away from.')
    return example.unconditional.media
