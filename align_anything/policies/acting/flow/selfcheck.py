"""The check of a model that denoises chunks before training: against its own pass, and alone against beside others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from align_anything.core.errors import ModelError
from align_anything.core.types import Example, Piece
from align_anything.models.acting.pi0 import BLANK, done
from align_anything.models.acting.pieces import FRAMES, GOAL, STATE, observed
from align_anything.models.adapter import bare_model
from align_anything.models.diffusion.process import wide
from align_anything.models.encoding import join
from align_anything.policies.acting.flow.collator import FlowCollator, FlowInputs

ALLOWED = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.08, torch.float16: 0.02}
"""What rounding may do to a velocity, as a share of what is of the order of one."""


def require_sound(
    model: nn.Module, collate: FlowCollator, dtype: torch.dtype, module: Any, device: torch.device
) -> None:
    """Compares the velocities of `module` with those of one whole pass of the model, and its scores with each alone.

    It is the policy over `model`, or what an engine wrapped around that. Raises ModelError where these differ by more
    than rounding, are not finite, or no gradient reaches the model.
    """
    module.eval()
    probes, name = _probes(collate), type(bare_model(model)).__name__
    together = collate(probes).to(device)
    with torch.no_grad():
        scored = module(together, prediction=True)
        alone = torch.cat([module(collate([example]).to(device)).values for example in probes])
        whole = _whole(model, together.inputs, dtype)
    if not bool(scored.values.isfinite().all()):
        raise ModelError(f'{name} fails the check before training: its scores are not finite.')
    compared = {
        'when steps are read once and chunks are denoised behind that': (scored.prediction, whole),
        'when episodes stand alone': (scored.values, alone),
    }
    for words, (found, wanted) in compared.items():
        worst = float(((found - wanted).abs() / wanted.abs().clamp(min=1.0)).max())
        if worst > ALLOWED[dtype]:
            raise ModelError(
                f'{name} fails the check before training: what it says changes by {worst:.2g} {words}, which rounding '
                f'in {dtype} does not explain (up to {ALLOWED[dtype]:g}).'
            )
    trains = any(parameter.requires_grad for parameter in model.parameters())
    if trains and not module(together).values.requires_grad:
        raise ModelError(f'{name} fails the check before training: no gradient of its scores reaches the model.')


def _whole(model: nn.Module, inputs: FlowInputs, dtype: torch.dtype) -> Tensor:
    seen, at = inputs.seen, inputs.step_of
    predicted = bare_model(model)(
        state=seen.state.to(dtype)[at],
        noise=inputs.sample.to(dtype),
        timestep=inputs.level,
        input_ids=seen.ids[at],
        attention_mask=seen.mask[at],
        pixel_values=seen.frames.to(dtype)[at],
        pixel_attention_mask=seen.cameras[at],
    ).logits
    return wide(predicted)


def _probes(collate: FlowCollator) -> list[Example]:
    """Episodes that differ in their instructions, their number of turns, and where their last chunk ends."""
    spec, generator = collate.spec, torch.Generator().manual_seed(0)
    blank = spec.blank().prompt

    def seen() -> Piece:
        frames = torch.rand(blank.media[FRAMES].shape, generator=generator) * 2 - 1
        state = torch.randn(blank.media[STATE].shape, generator=generator)
        return observed({FRAMES: frames, STATE: state}, frames.shape[1])

    def acted(steps: int) -> Piece:
        chunk = torch.randn(spec.chunk_shape, generator=generator)
        chunk[:, spec.dimensions :] = 0
        return done(torch.zeros(1).long(), torch.ones(1), chunk, torch.arange(len(chunk)) < steps)

    def begun(words: int) -> Piece:
        prompt = seen()
        goal = blank.media[GOAL].clone()
        goal[0, 1 : 1 + words] = torch.randint(len(spec.tokenizer) // 4, (words,), generator=generator)
        assert int(goal[0, -1]) == BLANK
        prompt.media[GOAL] = goal
        return prompt

    steps = spec.chunk_shape[0]
    several = join([acted(steps), seen(), acted(max(1, steps // 2))], spec.merge_media)
    return [
        Example(begun(3), [several, acted(steps)], source='first probe'),
        Example(begun(7), [acted(1)], source='second probe'),
    ]
