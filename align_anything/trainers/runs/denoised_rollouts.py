"""What generates the media of a run whose policy denoises."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from align_anything.algorithms.base import Algorithm
from align_anything.algorithms.generate import Generating
from align_anything.algorithms.online import Online
from align_anything.configs.generation import GenerationRunCfgs
from align_anything.configs.online import OnlineRunCfgs
from align_anything.configs.resolve import Resolved
from align_anything.configs.schema import RunCfgs
from align_anything.core.errors import SettingsError
from align_anything.core.types import Conversation, Piece
from align_anything.datasets.dataset import ExampleDataset
from align_anything.engines.base import Engine
from align_anything.engines.process_group import device_of_rank
from align_anything.models.diffusion.checkpoint import load_denoiser
from align_anything.models.diffusion.live import LiveConditions
from align_anything.models.diffusion.spec import DiffusionSpec
from align_anything.policies.denoising.collator import DenoisingCollator
from align_anything.rollouts.base import RolloutEngine
from align_anything.rollouts.denoising import DenoisingRollouts, DenoisingSampling, Window
from align_anything.trainers.pairs import Pair
from align_anything.trainers.runs.kernels import kernel_of
from align_anything.trainers.runs.pipelines import guidance_of, guidance_of_previews, with_saved_adapter
from align_anything.trainers.runs.rewarding import check_readable
from align_anything.trainers.runs.sampling import guided_prompts, is_guided
from align_anything.trainers.runs.settings import dtype_of

GENERATED_AT_ONCE = 16
"""Media, where the settings say no number."""


def sampling_of(
    resolved: Resolved[OnlineRunCfgs, Online], pair: Pair, spec: DiffusionSpec, steps_of_rollout: int
) -> DenoisingSampling:
    """How media are generated. Raises SettingsError for a window that does not fit into a rollout."""
    cfgs, algorithm = resolved.cfgs, resolved.algorithm
    if cfgs.environment_cfgs.environment is not None:
        raise SettingsError(['environment_cfgs.environment: this model denoises and takes no turns; leave it out.'])
    check_readable(cfgs.reward_cfgs.reward_functions, [spec.kind], None)
    own = cfgs.diffusion_cfgs
    first, last = own.sde_window_range or (0, None)
    slides = None if own.sde_window_slides_every is None else own.sde_window_slides_every * steps_of_rollout
    window = Window(own.sde_window, first, last, slides)
    trains = algorithm.trains_transitions
    problem = window.problem(own.rollout_steps) if trains else ''
    if problem:
        raise SettingsError([f'diffusion_cfgs.sde_window: {problem}.'])
    same_noise = own.sde_window is not None if own.same_noise_in_group is None else own.same_noise_in_group
    guidance = guidance_of(cfgs, spec, algorithm)
    eval_scale = cfgs.model_cfgs.eval_guidance_scale or guidance.scale
    evaluation = DenoisingSampling(
        steps=own.eval_rollout_steps or own.rollout_steps, guidance=replace(guidance, scale=eval_scale)
    )
    return DenoisingSampling(
        steps=own.rollout_steps,
        guidance=guidance,
        kernel=kernel_of(cfgs, spec.process) if trains else None,
        window=window,
        units='steps' if trains else 'draws',
        same_noise=trains and same_noise,
        evaluation=evaluation,
    )


def guided_if_asked(
    cfgs: OnlineRunCfgs, collate: DenoisingCollator, datasets: Sequence[ExampleDataset]
) -> tuple[DenoisingCollator, list[ExampleDataset]]:
    """The collator, and the prompts each with its unconditional form, of runs with guidance; of others as they are."""
    return collate, guided_prompts(datasets) if is_guided(cfgs.model_cfgs) else list(datasets)


def open_rollouts(
    resolved: Resolved[OnlineRunCfgs, Online],
    policy: Engine,
    spec: DiffusionSpec,
    sampling: DenoisingSampling,
) -> tuple[RolloutEngine, Callable[[Piece], list[dict[str, Any]]]]:
    """Returns what generates media with the weights of `policy`, and what decodes a response. Every rank calls it."""
    cfgs, algorithm = resolved.cfgs, resolved.algorithm
    responses = algorithm.per_device_prompt_batch_size * algorithm.num_generations
    rollouts = open_denoiser(cfgs, policy, spec, cfgs.model_cfgs.generation_batch_size or responses)
    return rollouts, spec.decode


def sampling_of_answers(cfgs: RunCfgs, algorithm: Algorithm, pair: Pair, spec: DiffusionSpec) -> DenoisingSampling:
    """How the media are generated that `eval_tasks` measure in training on data: as previews are."""
    guidance = guidance_of_previews(cfgs, algorithm, spec)
    return DenoisingSampling(steps=cfgs.diffusion_cfgs.preview_steps, guidance=guidance, units='draws')


def open_answers(cfgs: RunCfgs, policy: Engine, spec: DiffusionSpec, sampling: DenoisingSampling) -> DenoisingRollouts:
    """Returns what generates them with the weights of `policy`. Every rank calls it."""
    return open_denoiser(cfgs, policy, spec, cfgs.train_cfgs.per_device_eval_batch_size)


def open_frozen(
    resolved: Resolved[GenerationRunCfgs, Generating], spec: DiffusionSpec, sampling: DenoisingSampling, live: bool
) -> tuple[DenoisingRollouts, Callable[[Conversation], Conversation]]:
    """Returns what generates media with the weights of the checkpoint, and what prepares a conversation for it.

    `live` says whether prompts come that nothing was made of before: text encoders stay in memory then.
    """
    cfgs, device = resolved.cfgs, device_of_rank()
    dtype, source = dtype_of(cfgs), cfgs.model_cfgs.model_name_or_path
    denoiser = with_saved_adapter(cfgs, spec, load_denoiser(spec, dtype), source, dtype)
    pipeline = spec.open(device, decodes_only=not live)
    if live:
        spec.prepared = LiveConditions(spec, pipeline)
    rollouts = DenoisingRollouts(
        denoiser.requires_grad_(False).eval().to(device),
        spec,
        pipeline,
        dtype=dtype,
        device=device,
        batch_size=cfgs.model_cfgs.generation_batch_size or GENERATED_AT_ONCE,
    )
    return rollouts, lambda conversation: conversation


def open_denoiser(cfgs: RunCfgs, policy: Engine, spec: DiffusionSpec, batch_size: int) -> DenoisingRollouts:
    """Returns what generates media with the weights of `policy`, so many at once. Every rank calls it."""
    return DenoisingRollouts(
        policy.policy.model,
        spec,
        spec.open(policy.device, decodes_only=True),
        dtype=dtype_of(cfgs),
        device=policy.device,
        batch_size=batch_size,
        gathered=policy.gathered_weights,
    )
