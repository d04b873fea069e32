"""What acts in a run whose policy denoises chunks of actions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from align_anything.models.acting.pi0 import Pi0Spec
from align_anything.models.acting.pi0_checkpoint import load_pi0
from align_anything.models.adapter import find_adapter
from align_anything.policies.acting.flow.collator import FlowCollator
from align_anything.rollouts.base import RolloutEngine
from align_anything.rollouts.denoising import Window
from align_anything.rollouts.flow import FlowRollouts, FlowSampling
from align_anything.trainers.pairs import Pair
from align_anything.trainers.runs.acting import acting, require_acting
from align_anything.trainers.runs.flow_models import units_of_turn, with_saved_adapter
from align_anything.trainers.runs.kernels import kernel_of
from align_anything.trainers.runs.rewarding import check_readable
from align_anything.trainers.runs.sampling import is_guided
from align_anything.trainers.runs.settings import dtype_of

GENERATED_AT_ONCE = 64
"""Chunks, where the settings say no number."""


def sampling_of(
    resolved: Resolved[OnlineRunCfgs, Online], pair: Pair, spec: Pi0Spec, steps_of_rollout: int
) -> FlowSampling:
    """How chunks are generated. Raises SettingsError for guidance, and a window that does not fit into a rollout."""
    cfgs, algorithm = resolved.cfgs, resolved.algorithm
    if is_guided(cfgs.model_cfgs):
        raise SettingsError(['model_cfgs.guidance_scale: actions are not guided; leave it out.'])
    check_readable(cfgs.reward_cfgs.reward_functions, ['action'], None)
    own = cfgs.diffusion_cfgs
    if not algorithm.trains:
        return FlowSampling(steps=own.rollout_steps)
    require_acting(cfgs, spec)
    trains = algorithm.trains_transitions
    first, last = own.sde_window_range or (0, None)
    slides = None if own.sde_window_slides_every is None else own.sde_window_slides_every * steps_of_rollout
    window = Window(own.sde_window, first, last, slides)
    problem = window.problem(own.rollout_steps) if trains else ''
    if problem:
        raise SettingsError([f'diffusion_cfgs.sde_window: {problem}.'])
    units = units_of_turn(cfgs, algorithm)
    evaluation = FlowSampling(steps=own.eval_rollout_steps or own.rollout_steps, max_new_tokens=units)
    return FlowSampling(
        steps=own.rollout_steps,
        kernel=kernel_of(cfgs, spec.process) if trains else None,
        window=window,
        units='steps' if trains else 'draws',
        evaluation=evaluation,
        max_new_tokens=units,
    )


def guided_if_asked(
    cfgs: OnlineRunCfgs, collate: FlowCollator, datasets: Sequence[ExampleDataset]
) -> tuple[FlowCollator, list[ExampleDataset]]:
    """The collator and the prompts as they are."""
    return collate, list(datasets)


def open_rollouts(
    resolved: Resolved[OnlineRunCfgs, Online], policy: Engine, spec: Pi0Spec, sampling: FlowSampling
) -> tuple[RolloutEngine, Callable[[Piece], list[dict[str, Any]]]]:
    """Returns what acts with the weights of `policy`, and what says what was done. Every rank calls it."""
    cfgs, algorithm = resolved.cfgs, resolved.algorithm
    episodes = algorithm.per_device_prompt_batch_size * algorithm.num_generations
    rollouts = _open(cfgs, policy, spec, cfgs.model_cfgs.generation_batch_size or episodes)
    return acting(rollouts, cfgs, spec), spec.decode


def sampling_of_answers(cfgs: RunCfgs, algorithm: Algorithm, pair: Pair, spec: Pi0Spec) -> FlowSampling:
    """Raises SettingsError: `eval_tasks` knows nothing of environments, in which what is done is worth something."""
    raise SettingsError(
        [
            'train_cfgs.eval_tasks: what a model does is measured in an environment: evaluate it with an online '
            'algorithm (--environment, --eval_datasets), and leave this out.'
        ]
    )


def open_answers(cfgs: RunCfgs, policy: Engine, spec: Pi0Spec, sampling: FlowSampling) -> RolloutEngine:
    """Returns what answers with the weights of `policy`. Every rank calls it."""
    return _open(cfgs, policy, spec, cfgs.train_cfgs.per_device_eval_batch_size)


def open_frozen(
    resolved: Resolved[GenerationRunCfgs, Generating], spec: Pi0Spec, sampling: FlowSampling, live: bool
) -> tuple[RolloutEngine, Callable[[Conversation], Conversation]]:
    """Returns what says the next chunk with the weights of the checkpoint, and what prepares a conversation for it."""
    cfgs, device = resolved.cfgs, device_of_rank()
    source, dtype = cfgs.model_cfgs.model_name_or_path, dtype_of(cfgs)
    adapter = find_adapter(source)
    model = load_pi0(source if adapter is None else adapter.require_base(), dtype)
    rollouts = FlowRollouts(
        with_saved_adapter(cfgs, spec, model, source, dtype).requires_grad_(False).eval().to(device),
        spec,
        dtype=dtype,
        device=device,
        batch_size=cfgs.model_cfgs.generation_batch_size or GENERATED_AT_ONCE,
    )
    return acting(rollouts, cfgs, spec), lambda conversation: conversation


def _open(cfgs: RunCfgs, policy: Engine, spec: Pi0Spec, batch_size: int) -> FlowRollouts:
    return FlowRollouts(
        policy.policy.model,
        spec,
        dtype=dtype_of(cfgs),
        device=policy.device,
        batch_size=batch_size,
        gathered=policy.gathered_weights,
    )
