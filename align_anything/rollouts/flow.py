"""Rollouts of models that denoise chunks: one chunk for each prompt, of which each step is read once.

Steps without noise are the steps of Euler in `sample_actions` of the model. Those that are trained sample by a kernel,
and are kept with what they began and ended with: Flow-SDE (pi_RL: Chen et al., 2025, arXiv:2510.25889), over all steps
of a chunk or over one of them, chosen anew for each chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from align_anything.core.types import Example, Response, map_tensors
from align_anything.models.acting.pi0 import Pi0Spec, done
from align_anything.policies.acting.flow.collator import FlowCollator
from align_anything.policies.acting.flow.policy import kept
from align_anything.policies.acting.flow.prediction import read, spread, velocity
from align_anything.policies.denoising.collator import FIRST_LEVEL, LEVEL, NEXT, NEXT_LEVEL, SAMPLE
from align_anything.policies.denoising.transitions import Kernel, Step, log_probability, transition
from align_anything.rollouts.base import Tell, evaluated, tell_whole
from align_anything.rollouts.denoising import Units, Window
from align_anything.rollouts.restricted import seed_of


@dataclass(frozen=True)
class FlowSampling:
    """How chunks are generated.

    Attributes:
        responses: to each prompt.
        seed: of the generator.
        seeds: of each Example, in place of `seed`: what is sampled of one does not hang on the others then.
        steps: denoising steps.
        kernel: how trained steps sample; None where no step does.
        window: which steps these are.
        units: what is trained of a chunk: its `steps`, or `draws` of noise for what it ended with.
        evaluation: what differs when responses are evaluated.
        max_new_tokens: units of a turn, at most.
    """

    responses: int = 1
    seed: int = 0
    seeds: tuple[int, ...] | None = None
    steps: int = 10
    kernel: Kernel | None = None
    window: Window = field(default_factory=Window)
    units: Units = 'draws'
    evaluation: FlowSampling | None = None
    max_new_tokens: int = 1

    def of_evaluation(self) -> FlowSampling:
        """Returns how responses to evaluation data are generated: without noise on the way."""
        return self if self.evaluation is None else replace(self.evaluation, responses=self.responses, seed=self.seed)


class FlowRollouts:
    """Generates the next chunk of episodes, by weights that are always the present ones.

    Args:
        acting: the model, adapters in place.
        spec: its rules.
        dtype: what the model computes in.
        device: where.
        batch_size: chunks that are denoised at once.
        gathered: gathers all weights of a partitioned model on each rank as long as its context lasts.
    """

    def __init__(
        self,
        acting: nn.Module,
        spec: Pi0Spec,
        *,
        dtype: torch.dtype,
        device: torch.device,
        batch_size: int,
        gathered: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.acting, self.spec, self.dtype = acting, spec, dtype
        self.device, self.batch_size, self.gathered = device, batch_size, gathered
        self.version = 0
        self._collate = FlowCollator(spec)

    @property
    def model(self) -> Any:
        """The model."""
        return self.acting

    def sync(self, version: int) -> None:
        """Remembers the number of updates; the weights are those of the policy."""
        self.version = version

    def sleep(self) -> None:
        """Has no memory of its own to give back."""

    @torch.no_grad()
    def generate(
        self, examples: Sequence[Example], sampling: FlowSampling, tell: Tell | None = None
    ) -> list[list[Response]]:
        """Returns `sampling.responses` chunks that may follow each prompt, which ends with an observation."""
        wanted = [number for number in range(len(examples)) for _ in range(sampling.responses)]
        generators = _generators(wanted, sampling)
        found: list[list[Response]] = [[] for _ in examples]
        with evaluated(self.acting), self.gathered():
            for at in range(0, len(wanted), self.batch_size):
                numbers = wanted[at : at + self.batch_size]
                made = self._generated(examples, numbers, generators[at : at + self.batch_size], sampling)
                for number, response in zip(numbers, made, strict=True):
                    found[number].append(response)
        tell_whole(found, tell)
        return found

    def _generated(
        self,
        examples: Sequence[Example],
        numbers: Sequence[int],
        generators: Sequence[torch.Generator],
        sampling: FlowSampling,
    ) -> list[Response]:
        distinct = sorted(set(numbers))
        seen = map_tensors(
            self._collate.see([examples[number].prompt for number in distinct]), lambda own: own.to(self.device)
        )
        step_of = torch.tensor([distinct.index(number) for number in numbers], device=self.device)
        cache = spread(read(self.acting, seen, self.dtype), step_of, len(distinct))
        shape, total, process = self.spec.chunk_shape, sampling.steps, self.spec.process
        sample = torch.stack([torch.randn(shape, generator=own) for own in generators]).to(self.device)
        trains = sampling.kernel is not None and sampling.units == 'steps'
        trained = [sampling.window.steps(total, self.version, own) if trains else range(0) for own in generators]
        # As `sample_actions` rounds them.
        levels = [1.0 + number * (-1.0 / total) for number in range(total)] + [0.0]
        counted = self._collate.executed().to(self.device).expand(len(numbers), -1, -1)
        steps: list[dict[str, Tensor]] = []
        for number in range(total):
            level, next_level, first = (
                torch.full((len(numbers),), levels[at], device=self.device) for at in (number, number + 1, 1)
            )
            predicted = velocity(self.acting, cache, seen, step_of, sample, level, self.dtype)
            # What was denoised is no part of what the next step reads.
            cache.crop(-(shape[0] + 1))
            after = sample + (-1.0 / total) * predicted
            chosen = torch.tensor([number in own for own in trained], device=self.device)
            if bool(chosen.any()):
                step = Step(level, next_level, first)
                mean, std = transition(process, sampling.kernel, sample, predicted, step)
                noise = torch.stack(
                    [
                        torch.randn(shape, generator=own) if number in of else torch.zeros(shape)
                        for own, of in zip(generators, trained, strict=True)
                    ]
                ).to(mean)
                sampled = mean + std[:, None, None] * noise
                after = torch.where(chosen[:, None, None], sampled, after)
                logprobs = log_probability(kept(after, counted), kept(mean, counted), std)
                steps.append(
                    {
                        SAMPLE: sample,
                        NEXT: after,
                        LEVEL: level,
                        NEXT_LEVEL: next_level,
                        FIRST_LEVEL: first,
                        'rollout': logprobs,
                        'number': torch.full_like(level, number),
                        'chosen': chosen,
                    }
                )
            sample = after
        recorded = [{name: value.cpu() for name, value in own.items()} for own in steps]
        return [self._response(row, sample[row].float().cpu(), recorded, trains) for row in range(len(numbers))]

    def _response(self, row: int, chunk: Tensor, steps: Sequence[dict[str, Tensor]], trains: bool) -> Response:
        said = torch.ones(len(chunk), dtype=torch.bool)
        own = [{name: value[row] for name, value in step.items()} for step in steps if bool(step['chosen'][row])]
        draws = self.spec.draws
        ids = torch.tensor([int(step['number']) for step in own]) if trains else torch.arange(draws)
        weights = torch.ones(len(ids)) if trains else torch.full((draws,), 1 / draws)
        piece = done(ids, weights, chunk, said)
        for name in (SAMPLE, NEXT, LEVEL, NEXT_LEVEL, FIRST_LEVEL) if own else ():
            piece.media[name] = torch.stack([step[name] for step in own]).float()
        response = Response(
            **{one.name: getattr(piece, one.name) for one in fields(piece)}, finished=True, version=self.version
        )
        if trains:
            response.per_unit['rollout'] = torch.stack([step['rollout'] for step in own]).float()
        return replace(response, parts=self.spec.decode(response))


def _generators(wanted: Sequence[int], sampling: FlowSampling) -> list[torch.Generator]:
    """What each chunk is sampled by: its own, so that none hangs on how many are generated at once."""
    if sampling.seeds is None:
        seeds = [seed_of(sampling.seed, row) for row in range(len(wanted))]
    else:
        seeds = [seed_of(sampling.seeds[number], row % sampling.responses) for row, number in enumerate(wanted)]
    return [torch.Generator().manual_seed(seed) for seed in seeds]
