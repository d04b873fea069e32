"""Models that write tokens, as runs take them: their collator, their policy, loading, tuning, what is saved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from align_anything.algorithms.base import Algorithm
from align_anything.configs.resolve import Resolved
from align_anything.configs.schema import RunCfgs
from align_anything.core.distributed import world_size
from align_anything.core.logging import get_logger
from align_anything.engines.deepspeed_config import needs_every_parameter, partitions_weights, zero_stage
from align_anything.engines.handing import builds_without_weights
from align_anything.models import router, structure
from align_anything.models.action_space import keep_action_space
from align_anything.models.activations import activations_of
from align_anything.models.adapter import bare_model, find_adapter, put_on
from align_anything.models.any_model import add_score_head
from align_anything.models.compiling import told_of_layers
from align_anything.models.declared_codes import keep_codes
from align_anything.models.export import export_model
from align_anything.models.families import own_head
from align_anything.models.family import FamilySpec
from align_anything.models.feature_cache import cache_features, frozen_towers
from align_anything.models.liger import apply_liger, require_liger, why_without_liger
from align_anything.models.lora import AUTO
from align_anything.models.media_tokens import require_told_apart
from align_anything.models.pretrained_model import load_model, require_writing, tune_model
from align_anything.models.tiling import layers_of, tile_mlps
from align_anything.models.trainable import enable_gradient_checkpointing, require_reached, require_still
from align_anything.policies.base import Policy
from align_anything.policies.score import ScorePolicy
from align_anything.policies.token.collator import TokenCollator
from align_anything.policies.token.plan import fit_attention, kernel_of_rows, plan_batches
from align_anything.policies.token.policy import TokenPolicy
from align_anything.trainers.pairs import Pair
from align_anything.trainers.runs.compiled import compile_if_asked
from align_anything.trainers.runs.model_checks import check_freezing, require_reference_reads
from align_anything.trainers.runs.settings import checkpointing_of, dtype_of, sharing_of

logger = get_logger(__name__)


def make_collator(cfgs: RunCfgs, spec: FamilySpec, pair: Pair, algorithm: Algorithm) -> TokenCollator:
    """The collator of the run's policy; where the engine needs it, every batch holds each kind of media.

    So it does where text alone may reach nothing that trains, and would have no gradient.
    """
    return plan_batches(
        cfgs,
        spec,
        (pair.judged if algorithm.scores == 'responses' else pair).kinds_in(spec.continuous),
        shares_prompts=algorithm.task != 'supervised' or (spec.renderer.splits and cfgs.data_cfgs.train_on != 'last'),
        every_parameter=needs_every_parameter(sharing_of(cfgs), world_size()) or not trains_on_text(cfgs, algorithm),
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


def evaluating(cfgs: RunCfgs, collate: TokenCollator) -> TokenCollator:
    """The collator of evaluation data: the same."""
    return collate


def make_policy(scores: str, model: nn.Module, collate: TokenCollator, dtype: torch.dtype) -> Policy:
    """The policy over `model` that gives `scores` of `tokens`, `responses` or `units`, see `Algorithm.scores`."""
    if scores == 'tokens':
        return TokenPolicy(model, collate, dtype=dtype)
    return ScorePolicy(model, collate, dtype=dtype, units=scores == 'units')


def tune(cfgs: RunCfgs, spec: FamilySpec, model: nn.Module, algorithm: Algorithm) -> nn.Module:
    """Freezes, adapts and checkpoints `model` as the settings ask.

    What writes the codes beside tokens is frozen by algorithms that do not train it: they reach it with no gradient.
    Raises ModelError where the settings make some of it train.
    """
    train = cfgs.train_cfgs
    freezes = spec.codes is not None and spec.codes.further and algorithm.depth_coefficient is None
    tuned = tune_model(
        model,
        spec.components,
        freeze_vision_tower=train.freeze_vision_tower,
        freeze_audio_tower=train.freeze_audio_tower,
        freeze_mm_proj=train.freeze_mm_proj,
        freeze_generation=train.freeze_generation or bool(freezes),
        freeze_language_model=train.freeze_language_model,
        unfreeze_patterns=train.unfreeze_patterns,
        lora_cfgs=cfgs.lora_cfgs,
        adapter=find_adapter(cfgs.model_cfgs.model_name_or_path),
        dtype=dtype_of(cfgs),
    )
    if freezes:
        require_still(tuned, spec.components, 'generation', f'{algorithm.name} scores the first code of each frame')
    how = checkpointing_of(cfgs)
    if how is not None:
        enable_gradient_checkpointing(model, how)
    if train.mlp_tiles > 1:
        tile_mlps(tuned, spec.component_of, train.mlp_tiles)
    return tuned


def with_saved_adapter(cfgs: RunCfgs, spec: FamilySpec, model: nn.Module, source: str, dtype: torch.dtype) -> nn.Module:
    """Puts the adapter in `source`, if that is one, frozen onto the model that was loaded from under it."""
    adapter = find_adapter(source)
    return model if adapter is None else put_on(model, adapter)


def skeleton(spec: FamilySpec) -> nn.Module:
    """The model of a checkpoint without weights."""
    return structure.skeleton(spec.config)


def build_on_meta(cfgs: RunCfgs, spec: FamilySpec, algorithm: Algorithm) -> nn.Module:
    """The model tuned as the settings ask, without weights. Raises ModelError for what is wrong with that."""
    plain = skeleton(spec).to(dtype_of(cfgs))
    if algorithm.scores != 'units':
        router.router_coefficient(plain, cfgs.train_cfgs.router_aux_loss_coef)
    model = plain if algorithm.scores == 'tokens' else add_score_head(plain)
    model = tune(cfgs, spec, model, algorithm) if algorithm.trains else model.requires_grad_(False)
    if cfgs.model_cfgs.feature_cache_dir is not None:
        frozen_towers(model, spec)
    if cfgs.train_cfgs.torch_compile:
        compiled_layers(spec, model)
    return model


def compiled_layers(spec: FamilySpec, model: nn.Module) -> list[nn.Module]:
    """The layers that torch.compile compiles. Raises ModelError where it is not known which they are."""
    return list(layers_of(bare_model(model), spec.component_of, 'torch_compile'))


def activations(
    cfgs: RunCfgs, spec: FamilySpec, model: nn.Module, algorithm: Algorithm, size: int, positions: Mapping[str, int]
) -> float:
    """About how many bytes the model keeps of so many tokens, and positions of towers, for its backward pass."""
    train, width = cfgs.train_cfgs, dtype_of(cfgs).itemsize
    fused = train.use_liger_kernel and why_without_liger(spec.model_type) is None
    # Ranks that share rows share their media too.
    ranks = train.sequence_parallel_size
    own, seen = -(-size // ranks), {tower: -(-number // ranks) for tower, number in positions.items()}
    return activations_of(model, spec, own, width, checkpointing_of(cfgs), train.mlp_tiles, fused, seen)


def router_coefficient(cfgs: RunCfgs, algorithm: Algorithm, model: nn.Module) -> float:
    """The weight of the router loss in each step; a critic's model need not be a mixture of experts."""
    return router.router_coefficient(
        model, None if algorithm.scores == 'units' else cfgs.train_cfgs.router_aux_loss_coef
    )


def load(
    cfgs: RunCfgs,
    collate: TokenCollator,
    source: str,
    *,
    dtype: torch.dtype,
    config: dict[str, Any],
    is_reward_model: bool = False,
) -> PreTrainedModel:
    """Loads the weights of `source` with the attention of its layout, partitioned as the engine's `config` says.

    Under FSDP2 rank 0 alone reads them, where nothing looks at them before they are shared: code out of a checkpoint,
    scores without a head, caches of features.
    """
    # Alive while the model loads: transformers then partitions each weight as it is read.
    partitioned = zero_stage(config) == 3 and not cfgs.bnb_cfgs.use_bnb
    # Those that score by themselves have a scale, a number without a dimension, which would not be partitioned so.
    partitioned &= own_head(collate.spec.model_type) is None
    partitioning = _partitioned_loading(config) if partitioned else None
    own = cfgs.model_cfgs.trust_remote_code or own_head(collate.spec.model_type) is not None
    model = load_model(
        source,
        collate.spec.components,
        dtype=dtype,
        attn_implementation=cfgs.model_cfgs.attn_implementation,
        trust_remote_code=cfgs.model_cfgs.trust_remote_code,
        bnb_cfgs=cfgs.bnb_cfgs,
        is_reward_model=is_reward_model,
        on_meta=builds_without_weights(config) and not own and cfgs.model_cfgs.feature_cache_dir is None,
    )
    del partitioning
    if cfgs.train_cfgs.use_liger_kernel:
        why = why_without_liger(collate.spec.model_type)
        if why is None:
            apply_liger(model)
        else:
            logger.warning('train_cfgs.use_liger_kernel: not in force for %s: %s.', source, why)
    fit_attention(model, collate, cfgs.train_cfgs.torch_compile)
    return model


def make_ready(cfgs: RunCfgs, spec: FamilySpec, model: nn.Module, config: dict[str, Any]) -> None:
    """Does to a model what is left to do before an engine takes it, once it is frozen and bears its adapters.

    Its frozen towers keep what they compute, where the settings name a folder for it. ZeRO-3 learns what modules read
    of others. Its layers are compiled, where the settings ask.
    """
    if zero_stage(config) == 3:
        import deepspeed

        for module, parameter in spec.external_parameters(bare_model(model)):
            deepspeed.zero.register_external_parameter(module, parameter)
    if cfgs.model_cfgs.feature_cache_dir is not None:
        cache_features(model, spec, cfgs.model_cfgs.feature_cache_dir, in_step=partitions_weights(config))
    compile_if_asked(cfgs, config, lambda: compiled_layers(spec, model))


def kernels(cfgs: RunCfgs, collate: TokenCollator, model: nn.Module) -> dict[str, str]:
    """What computes, by what it is called, where settings or the machine decide it."""
    told = {}
    if not collate.pads and collate.segmented:
        told['attention'] = kernel_of_rows(collate.spec, dtype_of(cfgs))
    if cfgs.train_cfgs.use_liger_kernel:
        why = why_without_liger(collate.spec.model_type)
        told['Liger kernels'] = 'norms, rotations and gated MLPs' if why is None else f'not in force: {why}'
    if cfgs.train_cfgs.torch_compile:
        told['torch.compile'] = told_of_layers(compiled_layers(collate.spec, model))
    return told


def _partitioned_loading(config: dict[str, Any]) -> Any:
    from transformers.integrations import HfDeepSpeedConfig

    return HfDeepSpeedConfig(config)


def check_model(resolved: Resolved, spec: FamilySpec) -> None:
    """Raises SettingsError or ModelError for settings that mean nothing, or are wrong, for a family of tokens."""
    if resolved.cfgs.train_cfgs.use_liger_kernel:
        require_liger()
    if resolved.algorithm.scores != 'responses':
        require_writing(spec.model_type, resolved.cfgs.model_cfgs.model_name_or_path)
    check_freezing(resolved, spec.components)
    require_reference_reads(resolved.cfgs, resolved.algorithm, spec)


def require_trained(cfgs: RunCfgs, algorithm: Algorithm, collate: TokenCollator, model: nn.Module, pair: Pair) -> None:
    """Raises ModelError where a model, tuned as the settings ask, could not learn from rows of the pair."""
    spec, source = collate.spec, cfgs.model_cfgs.model_name_or_path
    require_reached(model, spec.components, collate.kinds, pair.name, pair.writes)
    read, written = {*collate.kinds, *pair.writes}, pair.writes if algorithm.scores == 'tokens' else ()
    require_told_apart(model, spec.codes, source, read=read, written=written)


def kept_features(cfgs: RunCfgs, spec: FamilySpec, model: nn.Module) -> list[str]:
    """The towers whose features are kept, where the settings name a folder for them."""
    if cfgs.model_cfgs.feature_cache_dir is None:
        return []
    return [tower.name for tower in frozen_towers(model, spec)]


def save(cfgs: RunCfgs, spec: FamilySpec, model: nn.Module, state: dict[str, Tensor] | None, folder: Path) -> None:
    """Writes the model to `folder`, with its `state` where it is partitioned. Call it on one rank."""
    export_model(
        model,
        state,
        folder,
        tokenizer=spec.tokenizer,
        processor=spec.processor,
        merge_adapter=cfgs.lora_cfgs.save_full_model,
        end_of_turn_id=spec.renderer.end_of_turn_id,
        pad_token_id=spec.pad_token_id,
    )
    keep_codes(spec.config, spec.codes, folder)
    keep_action_space(spec.space, folder)
