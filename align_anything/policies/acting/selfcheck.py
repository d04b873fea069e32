"""The check of a model that acts before training: what it says of a step hangs on what came before, and on no more."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from align_anything.core.errors import ModelError
from align_anything.core.types import Example, Piece
from align_anything.models.acting.pieces import FRAMES, GOAL, SAID, SENSORS, STATE, VALUES, acted, observed
from align_anything.models.encoding import join
from align_anything.policies.acting.collator import ActionCollator

ALLOWED = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.08, torch.float16: 0.02}
"""What rounding may do to a score, as a share of what is of the order of one."""


def require_sound(
    model: nn.Module, collate: ActionCollator, dtype: torch.dtype, module: Any, device: torch.device
) -> None:
    """Compares what `module` says of episodes beside each other with what it says of each alone, and of its beginning.

    It is the policy over `model`, or what an engine wrapped around that. Raises ModelError where these differ by more
    than rounding, are not finite, or no gradient reaches the model.
    """
    module.eval()
    name, allowed = type(model).__name__, ALLOWED[dtype]
    probes = _probes(collate)

    def told(examples: list[Example]) -> Tensor:
        with torch.no_grad():
            return module(collate(examples).to(device)).values.float()

    beside, alone = told(probes), torch.cat([told([example]) for example in probes])
    if not bool(beside.isfinite().all()):
        raise ModelError(f'{name} fails the check before training: its scores are not finite.')
    compared = [('when episodes stand alone', beside, alone)]
    first = probes[0].responses[0]
    shorter = told([replace(probes[0], responses=[_first_action(first)])])
    if len(beside) == sum(piece.units for example in probes for piece in example.responses):
        compared.append(('when later steps are left out', beside[:1], shorter))
    for words, found, wanted in compared:
        worst = float(((found - wanted).abs() / wanted.abs().clamp(min=1.0)).max())
        if worst > allowed:
            raise ModelError(
                f'{name} fails the check before training: its scores change by {worst:.2g} {words}, which rounding in '
                f'{dtype} does not explain (up to {allowed:g}).'
            )
    trains = any(parameter.requires_grad for parameter in model.parameters())
    if trains and not module(collate(probes).to(device)).values.requires_grad:
        raise ModelError(f'{name} fails the check before training: no gradient of its scores reaches the model.')


def _first_action(response: Piece) -> Piece:
    media = {name: response.media[name][:1] for name in (VALUES, SAID) if name in response.media}
    tensors = {name: value[:1] for name, value in response.token_tensors.items()}
    return Piece(response.ids[:1], response.weights[:1], media=media, token_tensors=tensors)


def _probes(collate: ActionCollator) -> list[Example]:
    """Episodes that differ in their length, their goals and how many begin alike."""
    spec, generator = collate.spec, torch.Generator().manual_seed(0)
    config = spec.config

    def seen() -> Piece:
        shape = (1, config.cameras, 3, *config.image_size)
        media = {FRAMES: torch.randint(256, shape, generator=generator, dtype=torch.uint8)}
        if spec.sensors:
            states = [torch.randint(config.sensors[name], (1,), generator=generator) for name in spec.sensors]
            media[SENSORS] = torch.stack(states, 1)
        if config.state_size:
            media[STATE] = torch.randn(1, config.state_size, generator=generator)
        return observed(media, config.cameras)

    def done() -> Piece:
        if config.head == 'categorical':
            return acted(int(torch.randint(config.actions, (), generator=generator)), 1.0)
        values = torch.randn(config.chunk, config.dimensions, generator=generator)
        return acted(0, 1.0, values, torch.ones(config.chunk, dtype=torch.bool))

    def episode(steps: int) -> Piece:
        between = [piece for _ in range(steps - 1) for piece in (seen(), done())]
        return join([done(), *between], spec.merge_media)

    def begun(words: int) -> Piece:
        prompt = seen()
        goal = torch.randint(len(spec.tokenizer), (1, min(words, config.goal_length)), generator=generator)
        prompt.media[GOAL] = goal
        return prompt

    return [
        Example(begun(3), [episode(4), episode(2)], source='first probe'),
        Example(begun(5), [episode(1)], source='second probe'),
    ]
