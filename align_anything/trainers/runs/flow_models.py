"""Models that denoise chunks of actions (pi0), as runs take them: settings, collator, policy, loading, saving."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from align_anything.algorithms.base import Algorithm
from align_anything.configs.online import OnlineRunCfgs
from align_anything.configs.resolve import Resolved
from align_anything.configs.schema import RunCfgs
from align_anything.core.errors import ModelError, SettingsError
from align_anything.core.logging import get_logger
from align_anything.models.acting.pi0 import Pi0Spec
from align_anything.models.acting.pi0_checkpoint import (
    adapted_components,
    add_score_head,
    export_pi0,
    load_pi0,
    without_idle,
)
from align_anything.models.adapter import find_adapter
from align_anything.models.pretrained_model import tune_model
from align_anything.policies.acting.flow.collator import FlowCollator
from align_anything.policies.acting.flow.policy import FlowPolicy
from align_anything.policies.acting.flow.score import FlowCritic
from align_anything.policies.base import Policy
from align_anything.trainers.pairs import Pair
from align_anything.trainers.runs.acting_models import (
    activations,
    kept_features,
    kernels,
    make_ready,
    require_same_space,
    require_trained,
    router_coefficient,
    skeleton,
    with_saved_adapter,
)
from align_anything.trainers.runs.kernels import kernel_of
from align_anything.trainers.runs.model_checks import check_freezing, without_effect
from align_anything.trainers.runs.settings import dtype_of

logger = get_logger(__name__)

__all__ = [
    'activations',
    'kept_features',
    'kernels',
    'make_ready',
    'require_trained',
    'router_coefficient',
    'skeleton',
    'with_saved_adapter',
]
"""What is the same for all models that act."""
READ = ('draws_per_sample', 'eval_draws', 'rollout_steps', 'eval_rollout_steps', 'sde_kernel', 'noise_level')
READ += ('sde_window', 'sde_window_range', 'sde_window_slides_every', 'kl_form')
"""The settings of denoisers that are read here."""
CLIP_RANGE = 0.02
"""Of ratios that are roots of those of whole chunks, since densities are means over the numbers of a chunk."""


def with_defaults(resolved: Resolved, spec: Pi0Spec) -> Resolved:
    """Returns the run without the settings of denoisers that mean nothing here, with defaults of its own."""
    unread = [key for key in type(resolved.cfgs.diffusion_cfgs).model_fields if key not in READ]
    why = f'{spec.model_type} denoises actions'
    resolved = without_effect(resolved, [f'diffusion_cfgs.{key}' for key in unread], why)
    more = ['model_cfgs.temperature', 'train_cfgs.bootstrap_truncated']
    resolved = without_effect(resolved, more, f'{why}, whose steps have a noise level instead of a temperature')
    kind = type(resolved.algorithm)
    if 'clip_range_ratio' not in kind.model_fields or resolved.given('train_cfgs.clip_range_ratio'):
        return resolved
    logger.info('defaults for flows of actions: clip_range_ratio: %g', CLIP_RANGE)
    return replace(resolved, algorithm=resolved.algorithm.model_copy(update={'clip_range_ratio': CLIP_RANGE}))


def units_of_turn(cfgs: OnlineRunCfgs, algorithm: Algorithm) -> int:
    """How many units a turn has: the denoising steps of it that are trained, or draws."""
    own = cfgs.diffusion_cfgs
    return (own.sde_window or own.rollout_steps - 1) if algorithm.trains_transitions else own.draws_per_sample


def make_collator(cfgs: RunCfgs, spec: Pi0Spec, pair: Pair, algorithm: Algorithm) -> FlowCollator:
    """The collator of the run's policy. Raises SettingsError for a kernel that a flow has not."""
    steps = algorithm.scores == 'units' or (algorithm.generates and algorithm.trains_transitions)
    return FlowCollator(spec, cfgs.train_cfgs.seed, kernel_of(cfgs, spec.process) if steps else None)


def evaluating(cfgs: RunCfgs, collate: FlowCollator) -> FlowCollator:
    """The collator of evaluation data: with the same levels and noise in all evaluations."""
    return replace(collate, grid=cfgs.diffusion_cfgs.eval_draws)


def make_policy(scores: str, model: nn.Module, collate: FlowCollator, dtype: torch.dtype) -> Policy:
    """The policy over `model`, or with scores of `units` a critic."""
    return (FlowCritic if scores == 'units' else FlowPolicy)(model, collate, dtype=dtype)


def tune(cfgs: RunCfgs, spec: Pi0Spec, model: nn.Module, algorithm: Algorithm) -> nn.Module:
    """Freezes and adapts `model` as the settings ask; what nothing that is learned hangs on is frozen in any case."""
    train = cfgs.train_cfgs
    tuned = tune_model(
        model,
        adapted_components(spec.components) if cfgs.lora_cfgs.use_lora else spec.components,
        freeze_vision_tower=train.freeze_vision_tower,
        freeze_mm_proj=train.freeze_mm_proj,
        freeze_language_model=train.freeze_language_model,
        unfreeze_patterns=train.unfreeze_patterns,
        lora_cfgs=cfgs.lora_cfgs,
        adapter=find_adapter(cfgs.model_cfgs.model_name_or_path),
        dtype=dtype_of(cfgs),
    )
    return without_idle(tuned, spec.config)


def build_on_meta(cfgs: RunCfgs, spec: Pi0Spec, algorithm: Algorithm) -> nn.Module:
    """The model tuned as the settings ask, without weights. Raises ModelError for what is wrong with that."""
    if algorithm.scores == 'responses':
        raise ModelError(
            f"models of type '{spec.model_type}' read one step at a time, and score no episodes: a reward model of "
            'episodes is one that reads them whole, such as spoc.'
        )
    model = skeleton(spec).to(dtype_of(cfgs))
    if algorithm.scores == 'units':
        model = add_score_head(model)
    return tune(cfgs, spec, model, algorithm) if algorithm.trains else model.requires_grad_(False)


def load(
    cfgs: RunCfgs,
    collate: FlowCollator,
    source: str,
    *,
    dtype: torch.dtype,
    config: dict[str, Any],
    is_reward_model: bool = False,
) -> nn.Module:
    """Loads the weights of `source`, of an adapter those of the model under it."""
    adapter = find_adapter(source)
    return load_pi0(source if adapter is None else adapter.require_base(), dtype, scores=is_reward_model)


def check_model(resolved: Resolved, spec: Pi0Spec) -> None:
    """Raises SettingsError or ModelError for settings that mean nothing, or are wrong, for a model of this kind."""
    cfgs, algorithm = resolved.cfgs, resolved.algorithm
    check_freezing(resolved, spec.components)
    problems = []
    if algorithm.generates and algorithm.trains and cfgs.environment_cfgs.environment is None:
        problems.append(
            f'environment_cfgs.environment is required: {algorithm.name} of a model that acts learns from what comes '
            'of its actions. For example: --environment reach'
        )
    if cfgs.train_cfgs.gradient_checkpointing:
        problems.append(
            'train_cfgs.gradient_checkpointing: the expert reads the keys and values of the language model, which it '
            'keeps none of then. Set it to False.'
        )
    if problems:
        raise SettingsError(problems)
    require_same_space(resolved, spec)


def save(cfgs: RunCfgs, spec: Pi0Spec, model: nn.Module, state: dict[str, Tensor] | None, folder: Path) -> None:
    """Writes the model, or its adapter, to `folder` with its action space; on one rank."""
    export_pi0(model, state, folder, spec, merge_adapter=cfgs.lora_cfgs.save_full_model)
