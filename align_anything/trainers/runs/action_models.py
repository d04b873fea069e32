"""Models that act, as runs take them: their collator, their policy, loading, tuning, what is saved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from align_anything.algorithms.base import Algorithm
from align_anything.configs.resolve import Resolved
from align_anything.configs.schema import RunCfgs
from align_anything.core.errors import ModelError, SettingsError
from align_anything.models.acting import checkpoint
from align_anything.models.acting.spec import ActionSpec
from align_anything.models.adapter import find_adapter
from align_anything.models.any_model import add_score_head
from align_anything.models.pretrained_model import tune_model
from align_anything.policies.acting.collator import ActionCollator
from align_anything.policies.acting.heads import make_head
from align_anything.policies.acting.policy import ActionPolicy
from align_anything.policies.acting.score import ActionScorePolicy
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
from align_anything.trainers.runs.model_checks import check_freezing
from align_anything.trainers.runs.settings import dtype_of

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
OF_TOKENS = (
    *(f'train_cfgs.{key}' for key in ('router_aux_loss_coef', 'layout', 'code_loss_over', 'eval_max_new_tokens')),
    *(f'train_cfgs.{key}' for key in ('gradient_checkpointing_every_n_layers', 'activation_offloading', 'mlp_tiles')),
    *('train_cfgs.torch_compile', 'train_cfgs.use_liger_kernel'),
    *(f'data_cfgs.{key}' for key in ('emitted_loss_weights',)),
    *(f'model_cfgs.{key}' for key in ('media_codes', 'media_code_dir', 'attn_implementation', 'chat_template')),
    *(f'model_cfgs.{key}' for key in ('processor_kwargs', 'feature_cache_dir', 'max_new_tokens', 'top_p', 'top_k')),
    *(f'model_cfgs.{key}' for key in ('repetition_penalty', 'stop', 'emit_*', 'trust_remote_code')),
    *('action_cfgs.action_states', 'lora_cfgs.task_type'),
    'bnb_cfgs.use_bnb',
    'vllm_cfgs.use_vllm',
)
"""Settings that models which act do not read; `*` stands for any part of a name."""


def make_collator(cfgs: RunCfgs, spec: ActionSpec, pair: Pair, algorithm: Algorithm) -> ActionCollator:
    """The collator of the run's policy; where policies are compared by ratios, densities are means over numbers.

    A window may have been any of an episode that is as long as the model reads, as SPOC trains it.
    """
    head = make_head(spec.config.head, mean=algorithm.has_ratios)
    data = cfgs.data_cfgs
    window = data.sliding_window or (1 if data.windows == 'all' else None)
    window = window if algorithm.task == 'supervised' else None
    latest = 0 if window is None else max(0, spec.config.max_steps - window)
    return ActionCollator(spec, head, behind=algorithm.scores != 'tokens', latest=latest, seed=cfgs.train_cfgs.seed)


def evaluating(cfgs: RunCfgs, collate: ActionCollator) -> ActionCollator:
    """The collator of evaluation data: the same, but all windows begin with the first step."""
    return replace(collate, latest=0)


def make_policy(scores: str, model: nn.Module, collate: ActionCollator, dtype: torch.dtype) -> Policy:
    """The policy over `model` that gives `scores` of `tokens`, `responses` or `units`, see `Algorithm.scores`."""
    if scores == 'tokens':
        return ActionPolicy(model, collate, dtype=dtype)
    return ActionScorePolicy(model, collate, dtype=dtype, units=scores == 'units')


def tune(cfgs: RunCfgs, spec: ActionSpec, model: nn.Module, algorithm: Algorithm) -> nn.Module:
    """Freezes and adapts `model` as the settings ask. Encoders that came trained are frozen from the start."""
    train = cfgs.train_cfgs
    tuned = tune_model(
        model,
        spec.components,
        freeze_vision_tower=train.freeze_vision_tower,
        freeze_mm_proj=train.freeze_mm_proj,
        freeze_language_model=train.freeze_language_model,
        unfreeze_patterns=train.unfreeze_patterns,
        lora_cfgs=cfgs.lora_cfgs,
        adapter=find_adapter(cfgs.model_cfgs.model_name_or_path),
        dtype=dtype_of(cfgs),
    )
    return checkpoint.without_idle(tuned)


def build_on_meta(cfgs: RunCfgs, spec: ActionSpec, algorithm: Algorithm) -> nn.Module:
    """The model tuned as the settings ask, without weights. Raises ModelError for what is wrong with that."""
    plain = skeleton(spec).to(dtype_of(cfgs))
    model = plain if algorithm.scores == 'tokens' else add_score_head(plain)
    return tune(cfgs, spec, model, algorithm) if algorithm.trains else model.requires_grad_(False)


def load(
    cfgs: RunCfgs,
    collate: ActionCollator,
    source: str,
    *,
    dtype: torch.dtype,
    config: dict[str, Any],
    is_reward_model: bool = False,
) -> nn.Module:
    """Loads the weights of `source`; the engine partitions them afterwards where its stage asks."""
    return checkpoint.load_acting(source, dtype, scores=is_reward_model)


def check_model(resolved: Resolved, spec: ActionSpec) -> None:
    """Raises SettingsError or ModelError for settings that mean nothing, or are wrong, for a model that acts."""
    cfgs, algorithm = resolved.cfgs, resolved.algorithm
    check_freezing(resolved, spec.components)
    if spec.config.head == 'l1' and algorithm.scores == 'tokens' and algorithm.trains and algorithm.name != 'sft':
        raise ModelError(
            f'{algorithm.name} compares how likely actions are, and an l1 head says one action and no distribution: '
            'train it with sft, or choose a model with a gaussian or a categorical head.'
        )
    if algorithm.generates and algorithm.trains and cfgs.environment_cfgs.environment is None:
        raise SettingsError(
            [
                f'environment_cfgs.environment is required: {algorithm.name} of a model that acts learns from what '
                'comes of its actions. For example: --environment hot_floor'
            ]
        )
    if cfgs.train_cfgs.gradient_checkpointing:
        raise SettingsError(['train_cfgs.gradient_checkpointing: models that act have no such form. Set it to False.'])
    require_same_space(resolved, spec)


def save(cfgs: RunCfgs, spec: ActionSpec, model: nn.Module, state: dict[str, Tensor] | None, folder: Path) -> None:
    """Writes the model, or its adapter, to `folder` with its action space; on one rank."""
    checkpoint.export_acting(model, state, folder, spec, merge_adapter=cfgs.lora_cfgs.save_full_model)
