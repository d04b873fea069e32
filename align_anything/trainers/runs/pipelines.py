"""Pipelines of diffusers, as runs take them: only the denoiser is loaded into an engine, tuned and saved."""

from __future__ import annotations

from collections.abc import Mapping
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
from align_anything.models.compiling import repeated_blocks, told_of_layers
from align_anything.models.diffusion.activations import kept_for_backward
from align_anything.models.diffusion.checkpoint import (
    denoiser_skeleton,
    enable_gradient_checkpointing,
    load_denoiser,
    load_spec,
)
from align_anything.models.diffusion.export import export_denoiser
from align_anything.models.diffusion.lora import apply_lora
from align_anything.models.diffusion.saved_lora import check_saved_lora, load_saved_lora, put_saved_lora
from align_anything.models.diffusion.score import DenoiserForScore
from align_anything.models.diffusion.spec import DiffusionSpec
from align_anything.models.diffusion.work import work_of_tokens
from align_anything.models.trainable import require_trainable
from align_anything.policies.base import Policy
from align_anything.policies.denoising.collator import DenoisingCollator
from align_anything.policies.denoising.critic import DenoisingCritic
from align_anything.policies.denoising.noise import Noise
from align_anything.policies.denoising.policy import DenoisingPolicy
from align_anything.policies.denoising.prediction import Guidance
from align_anything.trainers.pairs import Pair
from align_anything.trainers.runs.compiled import compile_if_asked
from align_anything.trainers.runs.kernels import kernel_of
from align_anything.trainers.runs.settings import checkpointing_of, dtype_of

EMBEDDED = 3.5
"""What guidance-distilled denoisers are told where they generate."""
SCALE = 4.5
"""Of guidance, where nothing else says so: in the middle of what the cards of models advise."""
OF_TOKENS = (
    *(f'train_cfgs.{key}' for key in ('group_by_length', 'router_aux_loss_coef', 'layout', 'freeze_*', 'stage')),
    *(f'train_cfgs.{key}' for key in ('sequence_parallel_size', 'mlp_tiles', 'use_liger_kernel')),
    *(f'train_cfgs.{key}' for key in ('unfreeze_patterns', 'code_loss_over', 'reference_cache_dir')),
    *(f'data_cfgs.{key}' for key in ('train_on', 'emitted_loss_weights', 'drop_truncated', 'sample_cache_dir')),
    *(f'model_cfgs.{key}' for key in ('media_codes', 'media_code_dir', 'model_max_length', 'attn_implementation')),
    *(f'model_cfgs.{key}' for key in ('chat_template', 'processor_kwargs', 'feature_cache_dir', 'max_new_tokens')),
    *(f'model_cfgs.{key}' for key in ('temperature', 'top_p', 'top_k', 'repetition_penalty', 'stop', 'emit_*')),
    'model_cfgs.eval_temperature',
    'train_cfgs.bootstrap_truncated',
    'train_cfgs.eval_max_new_tokens',
    'model_cfgs.*_critic_model_name_or_path',
    *(f'lora_cfgs.{key}' for key in ('vision_lora', 'modules_to_save', 'task_type')),
    'bnb_cfgs.use_bnb',
    'vllm_cfgs.use_vllm',
    'environment_cfgs.environment',
)
"""Settings that only models which write tokens read; `*` stands for any part of a name."""


def make_collator(cfgs: RunCfgs, spec: DiffusionSpec, pair: Pair, algorithm: Algorithm) -> DenoisingCollator:
    """The collator of the run's policy. Raises SettingsError for noise that the process does not have."""
    noise = noise_of(cfgs, spec)
    work = (1.0, 0.0) if cfgs.train_cfgs.max_length_per_batch is None else work_of_tokens(spec)
    several = cfgs.train_cfgs.max_length_per_batch is not None and not spec.one_size
    collate = DenoisingCollator(spec, noise, cfgs.train_cfgs.seed, several=several, work=work)
    if algorithm.scores == 'units':
        embedded = cfgs.diffusion_cfgs.embedded_guidance
        guidance = Guidance(embedded=EMBEDDED if embedded is None else embedded)
        return replace(collate, kernel=kernel_of(cfgs, spec.process), guidance=guidance)
    guidance = guidance_of(cfgs, spec, algorithm)
    if not algorithm.generates:
        return replace(collate, guidance=guidance)
    kernel = kernel_of(cfgs, spec.process) if algorithm.trains_transitions else None
    return replace(collate, kernel=kernel, guidance=guidance, contrast=algorithm.contrasts)


def evaluating(cfgs: RunCfgs, collate: DenoisingCollator) -> DenoisingCollator:
    """The collator of evaluation data: with the same levels and noise in all evaluations."""
    return replace(collate, grid=cfgs.diffusion_cfgs.eval_draws)


def guidance_of(cfgs: RunCfgs, spec: DiffusionSpec, algorithm: Algorithm) -> Guidance:
    """How predictions are led to the prompt, where responses are generated; in training on data they are not."""
    embedded = cfgs.diffusion_cfgs.embedded_guidance
    if not algorithm.generates:
        return Guidance(embedded=1.0 if embedded is None else embedded)
    scale = cfgs.model_cfgs.guidance_scale
    return Guidance(scale, spec.rescales_guidance, EMBEDDED if embedded is None else embedded)


def usual_guidance(spec: DiffusionSpec) -> float:
    """The scale of guidance where nothing else says so: none for denoisers that were distilled with it."""
    return 1.0 if spec.configs[spec.denoiser].get('guidance_embeds') else SCALE


def guidance_of_previews(cfgs: RunCfgs | OnlineRunCfgs, algorithm: Algorithm, spec: DiffusionSpec) -> Guidance:
    """How predictions are led to the prompt in previews: where responses are generated, as those of evaluations."""
    scale, embedded = cfgs.diffusion_cfgs.preview_guidance, cfgs.diffusion_cfgs.embedded_guidance
    if scale is None and algorithm.generates:
        scale = cfgs.model_cfgs.eval_guidance_scale or cfgs.model_cfgs.guidance_scale
    elif scale is None:
        scale = usual_guidance(spec)
    return Guidance(scale, spec.rescales_guidance, EMBEDDED if embedded is None else embedded)


def noise_of(cfgs: RunCfgs, spec: DiffusionSpec) -> Noise:
    """How noise levels are sampled and weighed in the run."""
    own = cfgs.diffusion_cfgs
    noise = Noise(
        timestep_sampling=own.timestep_sampling,
        logit_mean=own.timestep_logit_mean,
        logit_std=own.timestep_logit_std,
        mode_scale=own.timestep_mode_scale,
        shift=own.timestep_shift,
        weighting=own.loss_weighting,
        min_snr_gamma=own.min_snr_gamma,
        huber_c=own.huber_c,
        noise_offset=own.noise_offset,
        input_perturbation=own.input_perturbation,
    )
    noise.check(spec.process)
    return noise


def make_policy(scores: str, model: nn.Module, collate: DenoisingCollator, dtype: torch.dtype) -> Policy:
    """The policy over a denoiser, or with scores of `units` a critic over one with a head."""
    kind = DenoisingCritic if scores == 'units' else DenoisingPolicy
    return kind(model, collate, dtype=dtype)


def tune(cfgs: RunCfgs, spec: DiffusionSpec, model: nn.Module, algorithm: Algorithm) -> nn.Module:
    """Adapts and checkpoints a denoiser as the settings ask; without adapters all of it trains but constants.

    A score head trains in any case.
    """
    if algorithm.scores == 'units':
        model.denoiser = _tuned(cfgs, spec, model.denoiser)
        return model
    return _tuned(cfgs, spec, model)


def _tuned(cfgs: RunCfgs, spec: DiffusionSpec, model: nn.Module) -> nn.Module:
    how = checkpointing_of(cfgs)
    if how is not None:
        enable_gradient_checkpointing(model, spec, how)
    if not cfgs.lora_cfgs.use_lora:
        # As it was loaded: constants that the architecture holds as parameters stay.
        return model
    return _adapted(cfgs, spec, model, dtype_of(cfgs))


def with_saved_adapter(
    cfgs: RunCfgs, spec: DiffusionSpec, model: nn.Module, source: str, dtype: torch.dtype
) -> nn.Module:
    """Puts the adapter that the run started from, if it did, onto a frozen copy of what it started from."""
    if not cfgs.lora_cfgs.use_lora and cfgs.diffusion_cfgs.lora_weights is not None:
        return put_saved_lora(model, cfgs.diffusion_cfgs.lora_weights, spec)
    started = cfgs.diffusion_cfgs.lora_weights is not None and source == cfgs.model_cfgs.model_name_or_path
    return _adapted(cfgs, spec, model, dtype) if started else model


def _adapted(cfgs: RunCfgs, spec: DiffusionSpec, model: nn.Module, dtype: torch.dtype) -> nn.Module:
    adapted = apply_lora(model, cfgs.lora_cfgs, spec, dtype=dtype)
    if cfgs.diffusion_cfgs.lora_weights is not None:
        load_saved_lora(adapted, cfgs.diffusion_cfgs.lora_weights, spec)
    return adapted


def skeleton(spec: DiffusionSpec) -> nn.Module:
    """The denoiser without weights."""
    return denoiser_skeleton(spec)


def build_on_meta(cfgs: RunCfgs, spec: DiffusionSpec, algorithm: Algorithm) -> nn.Module:
    """The denoiser tuned as the settings ask, without weights. Raises ModelError for what is wrong with that."""
    if algorithm.scores == 'responses':
        raise ModelError(
            f"pipelines of class '{spec.model_type}' have no score head: reward models are models that read the media, "
            'such as Qwen2.5-VL.'
        )
    model = skeleton(spec)
    if algorithm.scores == 'units':
        with torch.device('meta'):
            model = _with_head(spec, model)
    model = model.to(dtype_of(cfgs))
    if cfgs.train_cfgs.torch_compile:
        repeated_blocks(model)
    return tune(cfgs, spec, model, algorithm) if algorithm.trains else model.requires_grad_(False)


def activations(
    cfgs: RunCfgs, spec: DiffusionSpec, model: nn.Module, algorithm: Algorithm, size: int, positions: Mapping[str, int]
) -> float | None:
    """The bytes that a denoiser keeps of so many samples for its backward pass, None where that cannot be counted."""
    denoiser = model.denoiser if algorithm.scores == 'units' else model
    return kept_for_backward(spec, denoiser, size, dtype_of(cfgs))


def denoised_at_once(cfgs: OnlineRunCfgs, spec: DiffusionSpec, algorithm: Algorithm) -> int:
    """The most samples that a micro-batch of an online run has: those before its trained steps, or draws."""
    own = cfgs.diffusion_cfgs
    steps = own.sde_window or own.rollout_steps - 1
    return cfgs.train_cfgs.per_device_train_batch_size * (steps if algorithm.trains_transitions else spec.draws)


def router_coefficient(cfgs: RunCfgs, algorithm: Algorithm, model: nn.Module) -> float:
    """None: no denoiser here is a mixture of experts whose router has a loss."""
    return 0.0


def load(
    cfgs: RunCfgs,
    collate: DenoisingCollator,
    source: str,
    *,
    dtype: torch.dtype,
    config: dict[str, Any],
    is_reward_model: bool = False,
) -> nn.Module:
    """Loads the weights of the denoiser of `source`; the engine partitions them afterwards where its stage asks.

    What scores gets a new head.
    """
    spec = collate.spec
    same = source == cfgs.model_cfgs.model_name_or_path
    if not same:
        spec = load_spec(source, spec.sizing, spec.draws, spec.text_length, spec.trains_text)
    denoiser = load_denoiser(spec, dtype)
    return _with_head(spec, denoiser).to(dtype) if is_reward_model else denoiser


def _with_head(spec: DiffusionSpec, denoiser: nn.Module) -> DenoiserForScore:
    channels = spec.latent_shape(spec.default_size())[spec.channel_dim]
    return DenoiserForScore(denoiser, channels, spec.channel_dim)


def make_ready(cfgs: RunCfgs, spec: DiffusionSpec, model: nn.Module, config: dict[str, Any]) -> None:
    """Has the blocks of a denoiser compiled before an engine takes it, where the settings ask."""
    compile_if_asked(cfgs, config, lambda: repeated_blocks(model))


def kernels(cfgs: RunCfgs, collate: DenoisingCollator, model: nn.Module) -> dict[str, str]:
    """What computes, by what it is called, where settings decide it."""
    return {'torch.compile': told_of_layers(repeated_blocks(model))} if cfgs.train_cfgs.torch_compile else {}


def check_model(resolved: Resolved, spec: DiffusionSpec) -> None:
    """Raises SettingsError or ModelError for settings that mean nothing, or are wrong, for a pipeline."""
    if resolved.cfgs.data_cfgs.streaming:
        raise SettingsError(
            [
                'data_cfgs.streaming: the rows of a stream cannot be encoded before training, and pipelines need that. '
                'Set it to False.'
            ]
        )
    train = resolved.cfgs.train_cfgs
    if train.torch_compile and train.max_length_per_batch is not None:
        raise SettingsError(
            [
                'train_cfgs.torch_compile: samples of several sizes in one call (train_cfgs.max_length_per_batch) are '
                'kept apart outside of what torch.compile sees; leave one of both out.'
            ]
        )
    if spec.no_checkpointing and resolved.cfgs.train_cfgs.activation_offloading:
        raise SettingsError(
            [f'train_cfgs.activation_offloading: {spec.model_type} trains without. {spec.no_checkpointing}']
        )
    started = resolved.cfgs.diffusion_cfgs.lora_weights
    if started is not None:
        check_saved_lora(started, spec, resolved.cfgs.lora_cfgs)
    source = resolved.algorithm.reference_model_name_or_path if resolved.algorithm.refers else None
    if source in (None, resolved.cfgs.model_cfgs.model_name_or_path):
        return
    other = load_spec(source, spec.sizing, spec.draws, train_text=spec.trains_text)
    if other.model_type != spec.model_type or other.process != spec.process:
        raise ModelError(
            f'train_cfgs.reference_model_name_or_path: {source} is a {other.model_type} and predicts '
            f'{other.process.prediction}, the policy is a {spec.model_type} and predicts {spec.process.prediction}. '
            'Name a reference of the same family.'
        )


def require_trained(
    cfgs: RunCfgs, algorithm: Algorithm, collate: DenoisingCollator, model: nn.Module, pair: Pair
) -> None:
    """Raises ModelError when no parameter of the denoiser trains; rows reach all of them."""
    require_trainable(model)


def kept_features(cfgs: RunCfgs, spec: DiffusionSpec, model: nn.Module) -> list[str]:
    """None: a denoiser has no tower."""
    return []


def save(cfgs: RunCfgs, spec: DiffusionSpec, model: nn.Module, state: dict[str, Tensor] | None, folder: Path) -> None:
    """Writes the pipeline, or its adapter, to `folder`, with its `state` where it is partitioned; on one rank."""
    export_denoiser(model, state, folder, spec=spec, merge_adapter=cfgs.lora_cfgs.save_full_model)
