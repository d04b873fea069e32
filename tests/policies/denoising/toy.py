"""A family whose denoiser is a handful of weights: no pipeline, no diffusers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from align_anything.core.types import Example, Piece, Response
from align_anything.models.diffusion.prepared import LATENTS, Prompt, Size
from align_anything.models.diffusion.process import DDPM, Angular, Flow, Prediction, Process, wide
from align_anything.models.diffusion.spec import DiffusionSpec
from align_anything.policies.denoising.collator import DenoisingCollator
from align_anything.policies.denoising.policy import DenoisingPolicy
from align_anything.policies.denoising.prediction import predict
from align_anything.policies.denoising.transitions import Step, transition

SHAPE, WIDTH = (3, 4, 2), 5
SHIFT = 3.0


def ddpm(prediction: Prediction = 'epsilon', zero_end: bool = False) -> DDPM:
    """That of Stable Diffusion 1.5, betas linear in their roots; with `zero_end` its last SNR is zero."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    kept = (1 - betas).cumprod(0)
    return DDPM((*kept[:-1].tolist(), 0.0 if zero_end else float(kept[-1])), prediction)


PROCESSES: dict[str, Process] = {
    'flow': Flow(),
    'epsilon': ddpm(),
    'v_prediction': ddpm('v_prediction'),
    'sample': ddpm('sample'),
    'angular': Angular(),
}


class ToySpec(DiffusionSpec):
    """Prompts are texts of which each letter is a vector."""

    side_multiple = 2

    def __init__(self, process: str = 'flow') -> None:
        self._name = process
        scheduler = {'_class_name': 'FlowMatchEulerDiscreteScheduler', 'shift': SHIFT}
        super().__init__(Path('toy'), {'_class_name': 'ToyPipeline'}, {'scheduler': scheduler})

    def make_process(self) -> Process:
        return PROCESSES[self._name]

    def default_size(self) -> Size:
        return SHAPE[1:]

    def latent_shape(self, size: Size) -> tuple[int, ...]:
        return (SHAPE[0], *size)

    def _prompt(self, asked: Prompt) -> Piece:
        return prompt(asked.text)

    def predict(
        self, denoiser: nn.Module, sample: Tensor, level: Tensor, conditions: Mapping[str, Tensor], guidance: float
    ) -> Tensor:
        return wide(denoiser(sample, level / self.process.highest, guidance=guidance, **conditions))


class ToyDenoiser(nn.Module):
    """A convolution, moved by level, guidance and prompt; of fixed weights."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.inside = nn.Conv2d(SHAPE[0], WIDTH, 3, padding=1)
        self.outside = nn.Conv2d(WIDTH, SHAPE[0], 3, padding=1)
        self.told = nn.Linear(4 + 2, WIDTH)
        self.calls: list[int] = []
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
        self.to(dtype)

    def forward(self, sample: Tensor, level: Tensor, *, letters: Tensor, mask: Tensor, guidance: float) -> Tensor:
        self.calls.append(len(sample))
        seen = (letters * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        told = torch.cat([seen, level[:, None].to(seen), torch.full_like(seen[:, :1], guidance)], 1)
        hidden = torch.tanh(self.inside(sample) + self.told(told)[..., None, None])
        return self.outside(hidden)


def prompt(text: str) -> Piece:
    letters = torch.stack([torch.tensor([ord(c), 2 * ord(c), 3 * ord(c), 1.0]).sin() for c in text or ' ']).double()
    mask = torch.full((len(letters),), int(bool(text)))
    return Piece(torch.zeros(0, dtype=torch.long), torch.zeros(0), media={'letters': letters, 'mask': mask})


def clean(seed: int, draws: int = 1, shape: Sequence[int] = SHAPE) -> Piece:
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(tuple(shape), generator=generator, dtype=torch.float64)
    return Piece(torch.arange(draws), torch.full((draws,), 1 / draws), media={LATENTS: latents})


def policy_of(process: str = 'flow', seed: int = 0, dtype: torch.dtype = torch.float64, **of_collator: Any) -> Any:
    """A policy over a new denoiser; the same weights for the same seed."""
    collate = DenoisingCollator(ToySpec(process), **of_collator)
    return DenoisingPolicy(ToyDenoiser(seed, dtype), collate, dtype=dtype)


def row(number: int, texts: str = 'a red cube', responses: int = 2, draws: int = 1) -> Example:
    pieces = [clean(10 * number + at, draws) for at in range(responses)]
    return Example(prompt(texts[: number + 3]), pieces, f'row {number}', {'desirable': [True, False][:responses]})


def levels_of(process: Process, steps: int) -> Tensor:
    """From the highest level to clean, `(steps + 1,)`."""
    if process.prediction == 'flow':
        return torch.linspace(1, 0, steps + 1)
    ends = process.highest, -1.0 if process.highest > 2 else 0.0
    return torch.linspace(*ends, steps + 1).round(decimals=0 if process.highest > 2 else 6)


def rollout(policy: DenoisingPolicy, example: Example, window: Sequence[int], seed: int, steps: int = 6) -> Response:
    """One response, whose steps of the window add noise and are trained, and the others not."""
    spec, generator = policy.collate.spec, torch.Generator().manual_seed(seed)
    levels = levels_of(spec.process, steps)
    dtype = torch.promote_types(policy.dtype, torch.float32)
    sample = torch.randn((1, *SHAPE), generator=generator, dtype=dtype)
    stack = {name: value[None] for name, value in example.prompt.media.items()}
    guide = None
    if policy.collate.guidance.is_on:
        guide = {name: value[None] for name, value in example.unconditional.media.items()}
    kept: dict[str, list[Tensor]] = {'sample': [], 'next': [], 'level': [], 'next_level': [], 'first_level': []}
    for number in range(steps):
        step = Step(*(levels[at][None] for at in (number, number + 1, 1)))
        kernel = policy.collate.kernel
        with torch.no_grad():
            predicted = predict(
                spec, policy.model, sample, step.level, stack, guide, policy.collate.guidance, policy.dtype
            )
        mean, std = transition(
            spec.process, kernel if number in window else replace(kernel, noise_level=0.0), sample, predicted, step
        )
        after = mean + std[0] * torch.randn(mean.shape, generator=generator, dtype=dtype)
        if number in window:
            for name, value in zip(kept, (sample, after, step.level, step.next_level, step.first_level), strict=True):
                kept[name].append(value[0])
        sample = after
    media = {name: torch.stack(values) for name, values in kept.items() if values}
    media[LATENTS] = sample[0]
    made = Response(torch.tensor(list(window)), torch.ones(len(window)), media)
    made.per_unit['rollout'] = torch.zeros(len(window))
    return made
