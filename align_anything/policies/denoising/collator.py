"""Examples to a Batch for a denoiser, in the data loader's workers: picklable, and without weights.

Two kinds of responses have units, and each batch holds one kind, of one latent shape:

- a clean sample, of data or generated: `media = {'latents': (…)}`, with `ids` the numbers of draws of a noise level and
  noise, and weights that add up to 1;
- denoising steps of a rollout: `media = {'sample': (S, …), 'next': (S, …), 'level': (S,), 'next_level': (S,),
  'first_level': (S,)}` float32, the sample before and after each trained step and its levels as `transitions.Step` has
  them, with `ids` the numbers of the steps and weights 1.

Both may hold `companion/<role>`, `(units, …)`: what another policy predicted of the units.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from align_anything.core.errors import ModelError, SampleError, SettingsError
from align_anything.core.store import digest
from align_anything.core.types import COMPANION, Batch, Cost, Example, Piece, Skipped
from align_anything.models.diffusion.prepared import LATENTS
from align_anything.models.diffusion.process import noised, target, wide
from align_anything.models.diffusion.spec import DiffusionSpec
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

    def __post_init__(self) -> None:
        self.noise.check(self.spec.process)
        if self.kernel is not None:
            self.kernel.check(self.spec.process)
        if self.contrast is not None and self.spec.process.prediction != 'flow':
            raise SettingsError([f'DiffusionNFT trains flows, and {self.spec.model_type} is none.'])

    def cost(self, example: Example) -> Cost:
        """Units of an Example by the elements of their latents, and as many again where they are guided."""
        pieces = example.responses
        units, elements = sum(piece.units for piece in pieces), max(map(_elements, pieces), default=0)
        passes = 2 if self.guidance.is_on and any(SAMPLE in piece.media for piece in pieces) else 1
        if example.unmatched is None:
            return Cost(units, elements, float(passes * units * elements))
        other = example.unmatched.units, _elements(example.unmatched)
        return Cost(units, elements, float(units * elements + math.prod(other)), *other)

    def size(self, examples: Sequence[Example]) -> int:
        """Elements of all latents that a micro-batch denoises at once."""
        total = Cost(0, 0)
        for example in examples:
            total = total.beside(self.cost(example))
        return total.size

    def __call__(self, examples: Sequence[Example], skipped: Sequence[Skipped] = ()) -> Batch:
        """Returns the Batch of these Examples; of none, a batch that computes and trains nothing.

        Raises:
            SampleError: their latents are of several shapes.
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
            _require_one_shape(examples)
            inputs = self._inputs(examples, owned)
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
            per_unit=per_unit | step_values(self.spec.process, self.kernel, inputs.step),
            stats={'examples': len(examples), 'units': units, 'latents': inputs.sample.numel() if units else 0},
        )

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


def _elements(piece: Piece) -> int:
    return math.prod(_shape(piece))


def _require_one_shape(examples: Sequence[Example]) -> None:
    shapes = {tuple(_shape(piece)): example.source for example in examples for piece in example.responses}
    if len(shapes) > 1:
        told = ', '.join(f'{"×".join(map(str, shape))} ({source})' for shape, source in shapes.items())
        raise SampleError(
            f'a micro-batch has latents of one shape, not of {told}: bring them to one size, or bucket them.'
        )


def _unconditional(example: Example) -> Mapping[str, Tensor]:
    if example.unconditional is None:
        raise ModelError(f'{example.source} has no unconditional prompt, which guidance leads away from.')
    return example.unconditional.media
