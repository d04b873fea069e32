"""From the settings to a policy in an engine: partitioned loading, freezing and adapters, optimizer, self-check."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from align_anything.algorithms.base import Algorithm
from align_anything.configs.deepspeed_files import load_deepspeed_config
from align_anything.configs.schema import RunCfgs
from align_anything.core.distributed import world_size
from align_anything.core.logging import get_logger
from align_anything.engines.deepspeed_config import needs_every_parameter, zero_stage
from align_anything.engines.deepspeed_engine import DeepSpeedEngine
from align_anything.engines.frozen import FrozenEngine
from align_anything.engines.gathering import gathered_tensors
from align_anything.engines.optim import make_optimizer, make_schedule, parameter_groups
from align_anything.engines.process_group import device_of_rank
from align_anything.models import structure
from align_anything.models.adapter import bare_model, find_adapter, put_on
from align_anything.models.any_model import add_score_head
from align_anything.models.dropout import switch_off_dropout
from align_anything.models.family import FamilySpec
from align_anything.models.feature_cache import cache_features, frozen_towers
from align_anything.models.lora import AUTO
from align_anything.models.media_tokens import untaught_kinds
from align_anything.models.pretrained_model import load_model, tune_model
from align_anything.models.router import router_coefficient
from align_anything.models.trainable import enable_gradient_checkpointing, learning_rates
from align_anything.policies.base import Policy
from align_anything.policies.score import ScorePolicy
from align_anything.policies.token.collator import TokenCollator
from align_anything.policies.token.plan import fit_attention, plan_batches
from align_anything.policies.token.policy import TokenPolicy
from align_anything.trainers.pairs import Pair
from align_anything.trainers.runs.settings import dtype_of, engine_config, precision_of

logger = get_logger(__name__)


def make_collator(cfgs: RunCfgs, spec: FamilySpec, pair: Pair, algorithm: Algorithm) -> TokenCollator:
    """The collator of the run's policy; where the engine needs it, every batch holds each kind of media.

    So it does where text alone may reach nothing that trains, and would have no gradient.
    """
    config = load_deepspeed_config(cfgs.train_cfgs.ds_cfgs)
    return plan_batches(
        cfgs,
        spec,
        (pair.judged if algorithm.scores == 'responses' else pair).kinds_in(spec.continuous),
        shares_prompts=algorithm.task != 'supervised' or (spec.renderer.splits and cfgs.data_cfgs.train_on != 'last'),
        every_parameter=needs_every_parameter(config, world_size()) or not trains_on_text(cfgs, algorithm),
    )


def trains_on_text(cfgs: RunCfgs, algorithm: Algorithm) -> bool:
    """Whether the gradient of any text is sure to reach a weight that trains.

    Named modules and patterns may be parts of towers, or layers of the language model that only look at images.
    """
    if algorithm.scores != 'tokens':
        return True  # a score head always trains
    if cfgs.lora_cfgs.use_lora:
        return cfgs.lora_cfgs.target_modules == AUTO
    return not cfgs.train_cfgs.freeze_language_model


def make_policy(scores: str, model: nn.Module, collate: TokenCollator, dtype: torch.dtype) -> Policy:
    """The policy over `model` that gives `scores` of `tokens`, `responses` or `units`, see `Algorithm.scores`."""
    if scores == 'tokens':
        return TokenPolicy(model, collate, dtype=dtype)
    return ScorePolicy(model, collate, dtype=dtype, units=scores == 'units')


def tune(cfgs: RunCfgs, spec: FamilySpec, model: nn.Module) -> nn.Module:
    """Freezes, adapts and checkpoints `model` as the settings ask."""
    train = cfgs.train_cfgs
    tuned = tune_model(
        model,
        spec.components,
        freeze_vision_tower=train.freeze_vision_tower,
        freeze_audio_tower=train.freeze_audio_tower,
        freeze_mm_proj=train.freeze_mm_proj,
        freeze_generation=train.freeze_generation,
        freeze_language_model=train.freeze_language_model,
        unfreeze_patterns=train.unfreeze_patterns,
        lora_cfgs=cfgs.lora_cfgs,
        adapter=find_adapter(cfgs.model_cfgs.model_name_or_path),
        dtype=dtype_of(cfgs),
    )
    if train.gradient_checkpointing:
        enable_gradient_checkpointing(model)
    return tuned


def build_on_meta(cfgs: RunCfgs, spec: FamilySpec, algorithm: Algorithm) -> tuple[nn.Module, dict[str, float]]:
    """The model tuned as the settings ask, without weights, and its learning rates.

    Raises ModelError for whatever is wrong with what should train, before any weight is read.
    """
    skeleton = structure.skeleton(spec.config).to(dtype_of(cfgs))
    if algorithm.scores != 'units':
        router_coefficient(skeleton, cfgs.train_cfgs.router_aux_loss_coef)
    model = skeleton if algorithm.scores == 'tokens' else add_score_head(skeleton)
    model = tune(cfgs, spec, model) if algorithm.trains else model.requires_grad_(False)
    if cfgs.model_cfgs.feature_cache_dir is not None:
        frozen_towers(model, spec)
    return model, parameter_rates(cfgs, spec, model)


def parameter_rates(cfgs: RunCfgs, spec: FamilySpec, model: nn.Module) -> dict[str, float]:
    """The learning rate of each trainable parameter of `model` by name."""
    return learning_rates(model, spec.components, cfgs.train_cfgs.learning_rate, cfgs.train_cfgs.lr_groups)


def assemble(cfgs: RunCfgs, algorithm: Algorithm, collate: TokenCollator, total_steps: int) -> DeepSpeedEngine:
    """Loads the model, wraps it and checks it. Every rank calls it, with a process group in place.

    The check may replace the collator: batches are made by that of the engine's policy from then on.
    """
    config, optimizer_name = engine_config(cfgs)
    train, spec, dtype = cfgs.train_cfgs, collate.spec, dtype_of(cfgs)
    source, is_reward_model = cfgs.model_cfgs.model_name_or_path, algorithm.scores != 'tokens'
    model = load_for_layout(cfgs, collate, source, dtype=dtype, config=config, is_reward_model=is_reward_model)
    tuned = tune(cfgs, spec, model)
    if algorithm.has_ratios and (dropout := switch_off_dropout(tuned)):
        logger.info('dropout: off, where the checkpoint has up to %g; the update compares scores without', dropout)
    make_ready(cfgs, spec, tuned, config)
    policy = make_policy(algorithm.scores, tuned, collate, dtype)
    rates = {f'model.{name}': rate for name, rate in parameter_rates(cfgs, spec, tuned).items()}
    groups = parameter_groups(
        policy.named_parameters(), learning_rate=train.learning_rate, weight_decay=train.weight_decay, rates=rates
    )
    optimizer = make_optimizer(optimizer_name, groups, betas=train.adam_betas, eps=train.adam_epsilon)
    engine = DeepSpeedEngine(
        policy,
        config,
        optimizer,
        lambda base: make_schedule(
            base, train.lr_scheduler_type, warmup_ratio=train.lr_warmup_ratio, total_steps=total_steps
        ),
        # A critic's model need not be a mixture of experts where the policy's is one.
        router_coefficient=router_coefficient(
            model, None if algorithm.scores == 'units' else train.router_aux_loss_coef
        ),
    )
    attention = cfgs.model_cfgs.attn_implementation
    logger.info(
        'in force: ZeRO stage %d, %s, optimizer %s, %s', engine.stage, precision_of(cfgs), optimizer_name, attention
    )
    _tell_of_new_tokens(engine, spec, bare_model(tuned).get_input_embeddings())
    policy.check(engine.engine, engine.device)
    engine.engine.train()
    logger.info('layout: %s', policy.collate.layout)
    return engine


def _tell_of_new_tokens(engine: DeepSpeedEngine, spec: FamilySpec, embedding: nn.Module) -> None:
    """Warns where nothing that trains can tell the codes of a kind apart."""
    if spec.codes is None or any(parameter.requires_grad for parameter in embedding.parameters()):
        return
    with gathered_tensors(engine, [embedding.weight]):
        kinds = untaught_kinds(embedding.weight, spec.codes)
    if kinds:
        logger.warning(
            'the tokens of %s codes are new and have all one row of the embedding, which is frozen: the model cannot '
            'tell them apart. Train it, under LoRA with modules_to_save [embed_tokens, lm_head] (embed_tokens alone '
            'where the head shares its weight).',
            ' and '.join(kinds),
        )


def open_frozen(
    cfgs: RunCfgs, collate: TokenCollator, source: str, *, scores: str, dtype: torch.dtype, config: dict[str, Any]
) -> FrozenEngine:
    """Loads the model `source` to give `scores` and not to train, an adapter on the model under it."""
    model: nn.Module = load_for_layout(
        cfgs, collate, source, dtype=dtype, config=config, is_reward_model=scores != 'tokens'
    )
    adapter = find_adapter(source)
    if adapter is not None:
        model = put_on(model, adapter)
    model.requires_grad_(False)
    make_ready(cfgs, collate.spec, model, config)
    return FrozenEngine(make_policy(scores, model, collate, dtype), config, device_of_rank())


def load_for_layout(
    cfgs: RunCfgs,
    collate: TokenCollator,
    source: str,
    *,
    dtype: torch.dtype,
    config: dict[str, Any],
    is_reward_model: bool = False,
) -> PreTrainedModel:
    """Loads the weights of `source` with the attention of its layout, partitioned as the engine's `config` says."""
    # Alive while the model loads: transformers then partitions each weight as it is read.
    partitioning = _partitioned_loading(config) if zero_stage(config) == 3 and not cfgs.bnb_cfgs.use_bnb else None
    model = load_model(
        source,
        collate.spec.components,
        dtype=dtype,
        attn_implementation=cfgs.model_cfgs.attn_implementation,
        trust_remote_code=cfgs.model_cfgs.trust_remote_code,
        bnb_cfgs=cfgs.bnb_cfgs,
        is_reward_model=is_reward_model,
    )
    del partitioning
    fit_attention(model, collate)
    return model


def make_ready(cfgs: RunCfgs, spec: FamilySpec, model: nn.Module, config: dict[str, Any]) -> None:
    """Does to a model what is left to do before an engine takes it, once it is frozen and bears its adapters.

    Its frozen towers keep what they compute, where the settings name a folder for it. ZeRO-3 learns what modules read
    of others.
    """
    if zero_stage(config) == 3:
        import deepspeed

        for module, parameter in spec.external_parameters(bare_model(model)):
            deepspeed.zero.register_external_parameter(module, parameter)
    if cfgs.model_cfgs.feature_cache_dir is not None:
        cache_features(model, spec, cfgs.model_cfgs.feature_cache_dir, in_step=zero_stage(config) == 3)


def _partitioned_loading(config: dict[str, Any]) -> Any:
    from transformers.integrations import HfDeepSpeedConfig

    return HfDeepSpeedConfig(config)
