"""From the settings to a policy in an engine: precision, partitioned loading, layout, optimizer."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from align_anything.algorithms.base import Algorithm
from align_anything.configs.deepspeed_files import load_deepspeed_config
from align_anything.configs.schema import RunCfgs
from align_anything.core.distributed import world_size
from align_anything.core.errors import ModelError, SettingsError
from align_anything.core.logging import get_logger
from align_anything.core.types import Batch
from align_anything.engines.deepspeed_config import (
    build_config,
    needs_every_parameter,
    offloads_optimizer,
)
from align_anything.engines.deepspeed_engine import DeepSpeedEngine
from align_anything.engines.optim import choose_optimizer, make_optimizer, make_schedule, parameter_groups
from align_anything.models import structure
from align_anything.models.adapter import bare_model, find_adapter
from align_anything.models.any_model import add_score_head
from align_anything.models.family import FamilySpec
from align_anything.models.feature_cache import frozen_towers
from align_anything.models.pretrained_model import load_spec, set_text_attention, tune_model
from align_anything.models.trainable import enable_gradient_checkpointing, learning_rates
from align_anything.policies.token.collator import TokenCollator
from align_anything.policies.score import ScorePolicy
from align_anything.policies.token.selfcheck import (
    LayoutMismatch,
    check_head,
    check_layout,
    probe_examples,
    random_reading,
)
from align_anything.policies.token.policy import TokenPolicy
from align_anything.trainers.runs.loading import load_for_layout, make_ready
from align_anything.trainers.pairs import Pair

logger = get_logger(__name__)

DTYPES = {'bf16': torch.bfloat16, 'fp16': torch.float16, 'fp32': torch.float32}
PROBE_VOCABULARY = 200


def precision_of(cfgs: RunCfgs) -> str:
    """`bf16`, `fp16` or `fp32`, as the settings ask. Raises SettingsError for fp16 on a CPU, which has no such mode."""
    if cfgs.train_cfgs.fp16 and not torch.cuda.is_available():
        raise SettingsError(['train_cfgs.fp16: DeepSpeed cannot train in float16 on a CPU. Use bf16, or neither.'])
    return 'bf16' if cfgs.train_cfgs.bf16 else 'fp16' if cfgs.train_cfgs.fp16 else 'fp32'


def engine_config(cfgs: RunCfgs) -> tuple[dict[str, Any], str]:
    """The DeepSpeed configuration of the run and the name of its optimizer."""
    train = cfgs.train_cfgs
    zero_file = load_deepspeed_config(train.ds_cfgs)
    device_type = 'cuda' if torch.cuda.is_available() else 'cpu'
    optimizer = choose_optimizer(train.optimizer, device_type=device_type, offload=offloads_optimizer(zero_file))
    config = build_config(
        zero_file,
        micro_batch=train.per_device_train_batch_size,
        accumulation=train.gradient_accumulation_steps,
        world_size=world_size(),
        precision=precision_of(cfgs),
        max_grad_norm=train.max_grad_norm,
        optimizer=optimizer,
    )
    return config, optimizer


def spec_of(cfgs: RunCfgs) -> FamilySpec:
    """The family rules of the run's checkpoint; reads no weights."""
    model = cfgs.model_cfgs
    return load_spec(
        model.model_name_or_path,
        model_max_length=model.model_max_length,
        trust_remote_code=model.trust_remote_code,
        chat_template=model.chat_template,
        processor_kwargs=model.processor_kwargs,
    )


def choose_layout(cfgs: RunCfgs, spec: FamilySpec, algorithm: Algorithm) -> str:
    """The layout to try: the one asked for, or the fastest for this data that the family and its attention bear.

    Raises SettingsError for a layout that they do not bear.
    """
    attention = cfgs.model_cfgs.attn_implementation
    if attention == 'flash_attention_2' and importlib.util.find_spec('flash_attn') is None:
        raise SettingsError(
            [
                'model_cfgs.attn_implementation: flash_attention_2 needs the package flash-attn and a GPU: '
                "pip install 'align-anything[flash-attn]', or use sdpa, which packs and shares prompts too."
            ]
        )
    by_attention = {'sdpa': spec.layouts, 'flash_attention_2': ('padded', 'packed'), 'eager': ('padded',)}[attention]
    possible = [layout for layout in spec.layouts if layout in by_attention]
    asked = cfgs.train_cfgs.layout
    if asked == 'auto':
        # With one response per prompt there is nothing to share, and packing is the plainer of the two.
        wanted = ('packed',) if algorithm.data_hook == 'supervised' else ('shared_prefix', 'packed')
        return next((layout for layout in wanted if layout in possible), 'padded')
    if asked not in possible:
        raise SettingsError(
            [
                f"train_cfgs.layout: '{asked}' is not possible for model_type '{spec.model_type}' with "
                f"attn_implementation '{attention}'. Possible: {', '.join(possible)}."
            ]
        )
    return asked


def make_collator(cfgs: RunCfgs, spec: FamilySpec, pair: Pair, layout: str) -> TokenCollator:
    """The collator of a layout; where the engine needs it, every batch holds each kind of media that any may hold."""
    every = needs_every_parameter(load_deepspeed_config(cfgs.train_cfgs.ds_cfgs), world_size())
    kinds = pair.kinds_in(spec.reads)
    if cfgs.data_cfgs.audio_in_video and 'video' in kinds and 'audio' not in kinds:
        kinds = ('audio', *kinds)
    return TokenCollator(
        spec,
        layout,
        segmented=cfgs.model_cfgs.attn_implementation == 'sdpa',
        dummy_kinds=kinds if every else (),
    )


def tune(cfgs: RunCfgs, spec: FamilySpec, model: nn.Module) -> nn.Module:
    """Freezes, adapts and checkpoints `model` as the settings ask."""
    train = cfgs.train_cfgs
    tuned = tune_model(
        model,
        spec.parts,
        freeze_vision_tower=train.freeze_vision_tower,
        freeze_audio_tower=train.freeze_audio_tower,
        freeze_mm_proj=train.freeze_mm_proj,
        freeze_language_model=train.freeze_language_model,
        unfreeze_patterns=train.unfreeze_patterns,
        lora_cfgs=cfgs.lora_cfgs,
        adapter=find_adapter(cfgs.model_cfgs.model_name_or_path),
        dtype=DTYPES[precision_of(cfgs)],
    )
    if train.gradient_checkpointing:
        enable_gradient_checkpointing(model)
    return tuned


def rehearse(cfgs: RunCfgs, spec: FamilySpec, algorithm: Algorithm) -> tuple[nn.Module, dict[str, float]]:
    """The model tuned as the settings ask, without weights, and its learning rates.

    Raises ModelError for whatever is wrong with what should train, before any weight is read.
    """
    skeleton = structure.skeleton(spec.config).to(DTYPES[precision_of(cfgs)])
    model = skeleton if algorithm.scores == 'tokens' else add_score_head(skeleton)
    model = tune(cfgs, spec, model) if algorithm.trains else model.requires_grad_(False)
    if cfgs.model_cfgs.feature_cache_dir is not None:
        frozen_towers(model, spec)
    return model, parameter_rates(cfgs, spec, model)


def parameter_rates(cfgs: RunCfgs, spec: FamilySpec, model: nn.Module) -> dict[str, float]:
    """The learning rate of each trainable parameter of `model` by name."""
    return learning_rates(model, spec.parts, cfgs.train_cfgs.learning_rate, cfgs.train_cfgs.lr_groups)


@dataclass
class Assembled:
    """A policy in its engine, and the collator of the layout that passed the check.

    `model` is what gets saved: the transformers model, in its adapter wrapper under LoRA.
    """

    engine: DeepSpeedEngine
    model: nn.Module
    collator: TokenCollator


def assemble(
    cfgs: RunCfgs, algorithm: Algorithm, spec: FamilySpec, pair: Pair, layout: str, total_steps: int
) -> Assembled:
    """Loads the model, wraps it and checks the layout on it. Every rank calls it, with a process group in place."""
    config, optimizer_name = engine_config(cfgs)
    train, attention = cfgs.train_cfgs, cfgs.model_cfgs.attn_implementation
    dtype = DTYPES[precision_of(cfgs)]
    model = load_for_layout(
        cfgs,
        spec,
        cfgs.model_cfgs.model_name_or_path,
        layout,
        dtype=dtype,
        config=config,
        is_reward_model=algorithm.scores != 'tokens',
    )
    tuned = tune(cfgs, spec, model)
    make_ready(cfgs, spec, tuned, config)
    policy = make_policy(algorithm, spec, tuned, dtype)
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
    )
    logger.info(
        'in force: ZeRO stage %d, %s, optimizer %s, %s', engine.stage, precision_of(cfgs), optimizer_name, attention
    )
    collator = checked(engine.engine, engine.device, policy, make_collator(cfgs, spec, pair, layout), spec, pair)
    engine.engine.train()
    logger.info('layout: %s', collator.layout)
    if model.config.get_text_config().to_dict().get('output_router_logits'):
        logger.warning(
            'the checkpoint asks for a router loss (output_router_logits), which is not part of the objective'
        )
    return Assembled(engine, tuned, collator)


def make_policy(
    algorithm: Algorithm, spec: FamilySpec, model: nn.Module, dtype: torch.dtype
) -> TokenPolicy | ScorePolicy:
    """The policy that gives the scores which the algorithm reads."""
    if algorithm.scores != 'tokens':
        return ScorePolicy(model, dtype=dtype, units=algorithm.scores == 'units')
    return TokenPolicy(model, softcap=spec.softcap, logit_scale=spec.logit_scale, dtype=dtype)


def ordinary_tokens(spec: FamilySpec) -> list[int]:
    """Ids of tokens that are plain text, to build probes from."""
    special = set(spec.tokenizer.added_tokens_decoder) | set(spec.tokenizer.all_special_ids) | spec.media_token_ids
    limit = min(len(spec.tokenizer), spec.config.get_text_config().vocab_size)
    return [token for token in range(limit) if token not in special][:PROBE_VOCABULARY]


def checked(
    module: nn.Module,
    device: torch.device,
    policy: TokenPolicy | ScorePolicy,
    collator: TokenCollator,
    spec: FamilySpec,
    pair: Pair,
) -> TokenCollator:
    """Returns the collator when its layout is right on this model, else that of the padded layout.

    With it the model takes up the attention of that layout. `module` is the policy, or what DeepSpeed wrapped around
    it. Raises ModelError when no layout is right.
    """
    vocabulary, kinds, dtype = ordinary_tokens(spec), pair.kinds_in(spec.reads), policy.dtype
    tokens = isinstance(policy, TokenPolicy)
    module.eval()

    def score(batch: Batch) -> torch.Tensor:
        return module(batch.to(device)) if tokens else module(batch.to(device), random_reading)

    def logits(batch: Batch) -> torch.Tensor:
        # Also by the engine's module: only in there does ZeRO-3 gather what is read without a call of its owner.
        return module(batch, whole=True)

    padded = replace(collator, layout='padded')
    try:
        if tokens:
            probe = padded(probe_examples(padded, vocabulary, kinds)).to(device)
            check_head(score, logits, probe, dtype)
        check_layout(score, padded, vocabulary, kinds, dtype)
    except LayoutMismatch as error:
        raise ModelError(
            f"model_type '{spec.model_type}' fails the check before training: {error}. Its scores would be wrong in "
            'any layout; it needs a FamilySpec of its own (docs/extending.md).'
        ) from error
    try:
        check_layout(score, collator, vocabulary, kinds, dtype)
    except (LayoutMismatch, NotImplementedError) as error:
        logger.warning("the '%s' layout is wrong for this model, falling back to 'padded': %s", collator.layout, error)
        if collator.segmented:
            set_text_attention(bare_model(policy.model), 'sdpa')
        collator = padded
    return collator
