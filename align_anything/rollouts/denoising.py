"""Rollouts of denoisers: an own loop over the rules of a family, because pipelines tell no means of their steps.

Steps without noise are those of the sampler: Euler's of flows, DDIM's of a DDPM. Those that are trained sample, and are
kept with what they began and ended with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from align_anything.core.errors import ModelError
from align_anything.core.types import Example, Piece, Response
from align_anything.models.diffusion.prepared import LATENTS
from align_anything.models.diffusion.spec import DiffusionSpec
from align_anything.policies.denoising.collator import FIRST_LEVEL, LEVEL, NEXT, NEXT_LEVEL, SAMPLE
from align_anything.policies.denoising.prediction import Guidance, predict
from align_anything.policies.denoising.transitions import Kernel, Step, log_probability, transition
from align_anything.rollouts.base import Tell, evaluated, tell_whole
from align_anything.rollouts.restricted import seed_of

Units = Literal['steps', 'draws']


@dataclass(frozen=True)
class Window:
    """Which steps of a rollout sample and are trained.

    Attributes:
        size: how many, one after the other; None for all but the last.
        first, last: steps that it may begin with, both included; `last` None for the last that it fits behind.
        slides_every: optimizer steps after which it begins a step later, and from the start again behind the last;
            None puts it somewhere else in each rollout.
    """

    size: int | None = None
    first: int = 0
    last: int | None = None
    slides_every: int | None = None

    def steps(self, total: int, version: int, generator: torch.Generator) -> range:
        """Returns the steps of a rollout of `total` steps by a policy that has seen `version` updates."""
        if self.size is None:
            return range(total - 1)
        last = total - 1 - self.size if self.last is None else self.last
        number = last - self.first + 1
        if self.slides_every is None:
            start = int(torch.randint(number, (), generator=generator))
        else:
            start = version // self.slides_every % number
        return range(self.first + start, self.first + start + self.size)

    def problem(self, total: int) -> str:
        """Returns what is wrong with it for rollouts of `total` steps, an empty text for nothing."""
        if self.size is None:
            return '' if total > 1 else 'one step has no noise of its own to train: take more'
        last = total - 1 - self.size if self.last is None else self.last
        if not 0 <= self.first <= last <= total - 1 - self.size:
            return (
                f'a window of {self.size} steps that begins with step {self.first} to {last} does not fit into the '
                f'{total - 1} steps before the last one, which has no noise'
            )
        return ''


@dataclass(frozen=True)
class DenoisingSampling:
    """How media are generated.

    Attributes:
        responses: to each prompt.
        seed: of the generator.
        seeds: of each Example, in place of `seed` for what it starts from: it does not hang on the others then.
        steps: denoising steps.
        guidance: how predictions are led to the prompt.
        kernel: how trained steps sample; None where no step does.
        window: which steps these are.
        units: what is trained of a response: its `steps`, or `draws` of noise for what it ended with.
        same_noise: whether the responses to a prompt start from the same noise.
        evaluation: what differs when responses are evaluated.
    """

    responses: int = 1
    seed: int = 0
    seeds: tuple[int, ...] | None = None
    steps: int = 10
    guidance: Guidance = field(default_factory=Guidance)
    kernel: Kernel | None = None
    window: Window = field(default_factory=Window)
    units: Units = 'steps'
    same_noise: bool = False
    evaluation: DenoisingSampling | None = None

    def of_evaluation(self) -> DenoisingSampling:
        """Returns how responses to evaluation data are generated: without noise on the way."""
        return self if self.evaluation is None else replace(self.evaluation, responses=self.responses, seed=self.seed)


class DenoisingRollouts:
    """Generates media with a denoiser, whose weights are always the present ones.

    Args:
        denoiser: adapters in place.
        spec: the rules of its family.
        pipeline: what `spec.open` returned, which decodes; it needs no text encoders.
        dtype: what the denoiser computes in.
        device: where.
        batch_size: responses that are generated at once.
        gathered: gathers all weights of a partitioned denoiser on each rank as long as its context lasts.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        spec: DiffusionSpec,
        pipeline: Any,
        *,
        dtype: torch.dtype,
        device: torch.device,
        batch_size: int,
        gathered: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.denoiser, self.spec, self.pipeline = denoiser, spec, pipeline
        self.dtype, self.device, self.batch_size, self.gathered = dtype, device, batch_size, gathered
        self.version = 0

    @property
    def model(self) -> Any:
        """The pipeline of diffusers with the denoiser in it. Raises ModelError for one of several experts."""
        if len(self.spec.denoisers) > 1:
            raise ModelError(
                f'{self.spec.model_type} denoises with {" and ".join(self.spec.denoisers)}, which are one model here: '
                'load the folder with DiffusionPipeline.from_pretrained of diffusers.'
            )
        self.pipeline.register_modules(**{self.spec.denoisers[0]: self.denoiser})
        return self.pipeline

    def sync(self, version: int) -> None:
        """Remembers the number of updates; the weights are those of the policy."""
        self.version = version

    def sleep(self) -> None:
        """Has no memory of its own to give back."""

    @torch.no_grad()
    def generate(
        self, examples: Sequence[Example], sampling: DenoisingSampling, tell: Tell | None = None
    ) -> list[list[Response]]:
        """Returns `sampling.responses` responses to the prompt of each Example; they are told at the end."""
        generator = torch.Generator().manual_seed(sampling.seed)
        shape = self.spec.latent_shape(self.spec.default_size())
        trained = range(0)
        if sampling.kernel is not None and sampling.units == 'steps':
            trained = sampling.window.steps(sampling.steps, self.version, generator)
        wanted = [number for number in range(len(examples)) for _ in range(sampling.responses)]
        starts = self._starts(shape, len(examples), sampling, generator)
        if sampling.same_noise:
            starts = [starts[at - at % sampling.responses] for at in range(len(wanted))]
        found: list[list[Response]] = [[] for _ in examples]
        with evaluated(self.denoiser), self.gathered():
            for at in range(0, len(wanted), self.batch_size):
                numbers = wanted[at : at + self.batch_size]
                start = torch.stack(starts[at : at + self.batch_size])
                made = self._generated([examples[number] for number in numbers], start, trained, sampling, generator)
                for number, response in zip(numbers, made, strict=True):
                    found[number].append(response)
        tell_whole(found, tell)
        return found

    def _starts(
        self, shape: tuple[int, ...], examples: int, sampling: DenoisingSampling, generator: torch.Generator
    ) -> list[Tensor]:
        """The noise that each response starts from."""
        if sampling.seeds is None:
            return [torch.randn(shape, generator=generator) for _ in range(examples * sampling.responses)]
        own = [seed_of(seed, number) for seed in sampling.seeds for number in range(sampling.responses)]
        return [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in own]

    def _generated(
        self,
        examples: Sequence[Example],
        sample: Tensor,
        trained: range,
        sampling: DenoisingSampling,
        generator: torch.Generator,
    ) -> list[Response]:
        spec, process, device = self.spec, self.spec.process, self.device
        levels = spec.levels(sampling.steps, sample.shape[1:])
        conditions = self._conditions([example.prompt for example in examples])
        unconditional = None
        if sampling.guidance.is_on:
            unconditional = self._conditions([example.unconditional for example in examples])
        plain = Kernel('flow_sde' if process.prediction == 'flow' else 'ddim', noise_level=0)
        steps: list[dict[str, Tensor]] = []
        sample = sample.to(device)
        for number in range(sampling.steps):
            level, next_level, first = (
                levels[at].expand(len(sample)).to(device) for at in (number, number + 1, min(1, sampling.steps))
            )
            prediction = predict(
                spec, self.denoiser, sample, level, conditions, unconditional, sampling.guidance, self.dtype
            )
            step = Step(level, next_level, first)
            mean, std = transition(process, sampling.kernel if number in trained else plain, sample, prediction, step)
            after = mean
            if number in trained:
                noise = torch.randn(mean.shape, generator=generator).to(mean)
                after = mean + std.view(-1, *[1] * (mean.ndim - 1)) * noise
                steps.append(
                    {
                        SAMPLE: sample,
                        NEXT: after,
                        LEVEL: level,
                        NEXT_LEVEL: next_level,
                        FIRST_LEVEL: first,
                        'rollout': log_probability(after, mean, std),
                    }
                )
            sample = after
        media = spec.decode_latents(self.pipeline, sample)
        kept = [{name: value.float().cpu() for name, value in own.items()} for own in steps]
        return [
            self._response(row, medium, sample[row].float().cpu(), kept, trained, sampling)
            for row, medium in enumerate(media)
        ]

    def _conditions(self, prompts: Sequence[Piece]) -> dict[str, Tensor]:
        stacked = self.spec.stack([prompt.media for prompt in prompts])
        return {name: value.to(self.device) for name, value in stacked.items()}

    def _response(
        self,
        row: int,
        medium: Any,
        latents: Tensor,
        steps: Sequence[dict[str, Tensor]],
        trained: range,
        sampling: DenoisingSampling,
    ) -> Response:
        kind, draws = self.spec.kind, self.spec.draws
        if sampling.units == 'draws':
            ids, weights = torch.arange(draws), torch.full((draws,), 1 / draws)
            media, per_unit = {LATENTS: latents}, {}
        else:
            ids, weights = torch.tensor(list(trained), dtype=torch.long), torch.ones(len(trained))
            joined = {name: torch.stack([step[name][row] for step in steps]) for name in (steps[0] if steps else ())}
            per_unit = {'rollout': joined.pop('rollout', torch.zeros(0))}
            media = joined
        return Response(
            ids=ids,
            weights=weights,
            media=media,
            media_counts={kind: 1},
            per_unit=per_unit,
            version=self.version,
            parts=[{'type': kind, kind: medium}],
        )
