"""The check of a denoiser before training: what it says of a sample hangs on nothing beside it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from align_anything.core.errors import ModelError
from align_anything.core.types import Example, Piece
from align_anything.models.diffusion.pictures import SOURCE
from align_anything.models.diffusion.prepared import LATENTS
from align_anything.policies.denoising.collator import DenoisingCollator

ALLOWED = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.02}
"""What rounding may do to the score of a sample beside others, as a share of what is of the order of one."""


def require_sound(
    model: nn.Module, collate: DenoisingCollator, dtype: torch.dtype, module: Any, device: torch.device
) -> None:
    """Compares what `module` says of samples beside each other with what it says of each alone, and of the same again.

    It is the policy over `model`, or what an engine wrapped around that. Raises ModelError where these differ by more
    than rounding, are not finite, or no gradient reaches the denoiser.
    """
    module.eval()
    alone = [collate([example]).to(device) for example in _probes(collate)]
    beside = collate(_probes(collate)).to(device)
    name, allowed = type(collate.spec).__name__, ALLOWED[dtype]
    advice = 'Leave out train_cfgs.max_length_per_batch, and a micro-batch has one size.' if collate.several else ''
    with torch.no_grad():
        wanted = torch.cat([module(batch).values for batch in alone])
        found, again = module(beside).values, module(beside).values
    if not bool(found.isfinite().all()):
        raise ModelError(f'{name} fails the check before training: its scores are not finite.')
    scale = wanted.abs().clamp(min=1.0)
    for other, words in ((again, 'when they are computed again'), (wanted, 'when samples stand alone')):
        worst = float(((found - other).abs() / scale).max())
        if worst > allowed:
            raise ModelError(
                f'{name} fails the check before training: its scores change by {worst:.2g} {words}, which rounding '
                f'in {dtype} does not explain (up to {allowed:g}). {advice}'.rstrip()
            )
    trains = any(parameter.requires_grad for parameter in model.parameters())
    if trains and not module(beside).values.requires_grad:
        raise ModelError(f'{name} fails the check before training: no gradient of its scores reaches the denoiser.')


def _probes(collate: DenoisingCollator) -> list[Example]:
    """Examples that differ in their latents, their noise and how many responses they have."""
    blank, generator = collate.spec.blank(), torch.Generator().manual_seed(0)
    shape = blank.responses[0].media[LATENTS].shape

    def response(draws: int) -> Piece:
        latents = torch.randn(shape, generator=generator)
        return Piece(torch.arange(draws), torch.full((draws,), 1 / draws), media={LATENTS: latents})

    probes = [
        replace(blank, source='first probe', responses=[response(1), response(2)]),
        replace(blank, source='second probe', responses=[response(1)]),
    ]
    return [*probes, _narrower(collate, generator)] if collate.several else probes


def _narrower(collate: DenoisingCollator, generator: torch.Generator) -> Example:
    """One whose sample is half as wide, with pictures in its prompt as large as that."""
    blank, spec = collate.spec.blank(), collate.spec
    *frames, height, width = spec.default_size()
    unit = spec.size_unit
    shape = spec.latent_shape((*frames, height, max(unit, width // unit // 2 * unit)))
    media = {
        name: value.new_zeros(len(value), *shape[1:]) if name == SOURCE else value
        for name, value in blank.prompt.media.items()
    }
    latents = torch.randn(shape, generator=generator)
    response = Piece(torch.arange(1), torch.ones(1), media={LATENTS: latents})
    return replace(blank, source='third probe', prompt=replace(blank.prompt, media=media), responses=[response])
