"""Pipelines of diffusers, as plans know them: by a pass without numbers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import nn

from align_anything.algorithms.base import Algorithm
from align_anything.configs.schema import LoraCfgs
from align_anything.core.errors import ModelError, SettingsError
from align_anything.core.flops import Flops, of_update
from align_anything.models.checkpointing import ALL_LAYERS, Checkpointing
from align_anything.models.diffusion.activations import Pass, forward_pass
from align_anything.models.diffusion.checkpoint import denoiser_skeleton, enable_gradient_checkpointing
from align_anything.models.diffusion.lora import apply_lora
from align_anything.models.diffusion.spec import DiffusionSpec, Sizing
from align_anything.models.trainable import count
from align_anything.trainers.runs.pipelines import usual_guidance
from align_anything.trainers.runs.planning.rollouts import Rollouts
from align_anything.trainers.runs.planning.subject import Asked, Settings, Subject


def sizing_of(asked: Asked) -> Sizing:
    """Returns what size media are brought to."""
    side = asked.image_size
    return Sizing(
        None if side is None else (side, side), num_frames=asked.frames or None, seconds=asked.seconds or None
    )


def denoiser_subject(spec: DiffusionSpec, algorithm: Algorithm, asked: Asked) -> Subject:
    """Returns what a plan must know of the denoiser of a pipeline.

    Raises SettingsError for weights in 4 bits, and ModelError for a family whose shapes hang on numbers.
    """
    if asked.use_bnb:
        raise SettingsError(['--qlora: the weights of a denoiser are not quantised here; take --lora.'])

    def tuned(how: Checkpointing | None) -> nn.Module:
        model = denoiser_skeleton(spec).to(torch.bfloat16)
        if how is not None:
            enable_gradient_checkpointing(model, spec, how)
        return apply_lora(model, LoraCfgs(use_lora=True), spec, dtype=torch.bfloat16) if asked.use_lora else model

    @cache
    def called(how: Checkpointing | None) -> Pass:
        found = forward_pass(spec, tuned(how), 1, torch.bfloat16)
        if found is None:
            raise ModelError(
                f'{spec.source} cannot be planned: a {spec.model_type} looks at the numbers of a prompt to know the '
                'shape of what it computes, and a plan has no numbers. A run counts its operations (docs/reports.md).'
            )
        return found

    model = tuned(None)
    samples, at_once = samples_of(algorithm, asked)
    can_recompute = not spec.no_checkpointing and _recomputes(tuned)
    every = sum(count(parameter) for parameter in model.parameters())
    trained = sum(count(parameter) for parameter in model.parameters() if parameter.requires_grad) / every
    guided = algorithm.generates and is_guided(spec)

    def passes(settings: Settings) -> Flops:
        one = called(None)
        update = of_update(one.products, one.attention, trained, float(settings.recomputes is not None))
        forward = Flops(update.forward)
        found = update + (forward if guided else Flops())
        beside = int(algorithm.refers) + int(algorithm.generates) + int(algorithm.task == 'unpaired')
        for _ in range(beside):
            found += forward + (forward if guided else Flops())
        if algorithm.generates:
            for _ in algorithm.critics:
                found += update + forward
        return Flops(*(samples * value for value in (found.forward, found.backward, found.again)))

    return Subject(
        model,
        denoiser_skeleton(spec).to(torch.bfloat16).requires_grad_(False),
        0.0,
        [None, ALL_LAYERS] if can_recompute else [None],
        lambda settings: at_once * called(settings.recomputes).kept,
        at_once * called(ALL_LAYERS).kept if can_recompute else 0.0,
        passes,
        samples,
        'samples',
        called(None).products + called(None).attention,
    )


def _recomputes(tuned: Callable[[Checkpointing | None], nn.Module]) -> bool:
    try:
        tuned(ALL_LAYERS)
    except ModelError:
        return False
    return True


def samples_of(algorithm: Algorithm, asked: Asked) -> tuple[int, int]:
    """Returns how many samples are denoised for a prompt in the update, and how many of a row of a micro-batch at once.

    Of a rollout all steps but the last one train, as by default, or one draw of each response.
    """
    if not algorithm.generates:
        responses = 2 if algorithm.task == 'preference' else 1
        return responses, responses
    trained = max(1, asked.steps - 1) if algorithm.trains_transitions else 1
    return asked.generations * trained, trained


def is_guided(spec: DiffusionSpec) -> bool:
    """Whether the family is usually sampled with guidance, which calls the denoiser twice."""
    return usual_guidance(spec) != 1


def denoised_rollouts(spec: DiffusionSpec, forward: float, asked: Asked) -> Rollouts:
    """Returns how responses would be sampled, given the operations of the denoiser for one sample."""
    calls = asked.steps * (2 if is_guided(spec) else 1)
    responses = -(-asked.rows * asked.generations // asked.gpus)
    return Rollouts(1, responses, responses * calls * forward / asked.operations)
