"""From a checkpoint to a model that an engine can take, trained or frozen, partitioned as it is read under ZeRO-3."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from align_anything.configs.schema import RunCfgs
from align_anything.engines.deepspeed_config import zero_stage
from align_anything.models.adapter import bare_model, find_adapter, put_on
from align_anything.models.family import FamilySpec
from align_anything.models.feature_cache import cache_features
from align_anything.models.pretrained_model import load_model, set_text_attention
from align_anything.policies.token.attention import SEGMENT_ATTENTION, register_segment_attention


def load_for_layout(
    cfgs: RunCfgs,
    spec: FamilySpec,
    source: str,
    layout: str,
    *,
    dtype: torch.dtype,
    config: dict[str, Any],
    is_reward_model: bool = False,
) -> PreTrainedModel:
    """Loads the weights of `source` with the attention of `layout`, partitioned as the engine's `config` says."""
    # Alive while the model loads: transformers then partitions each weight as it is read.
    partitioning = _partitioned_loading(config) if zero_stage(config) == 3 and not cfgs.bnb_cfgs.use_bnb else None
    model = load_model(
        source,
        spec.parts,
        dtype=dtype,
        attn_implementation=cfgs.model_cfgs.attn_implementation,
        trust_remote_code=cfgs.model_cfgs.trust_remote_code,
        bnb_cfgs=cfgs.bnb_cfgs,
        is_reward_model=is_reward_model,
    )
    del partitioning
    if layout != 'padded' and cfgs.model_cfgs.attn_implementation == 'sdpa':
        register_segment_attention()
        set_text_attention(model, SEGMENT_ATTENTION)
    return model


def load_frozen(
    cfgs: RunCfgs,
    spec: FamilySpec,
    source: str,
    layout: str,
    *,
    dtype: torch.dtype,
    config: dict[str, Any],
    is_reward_model: bool = False,
) -> nn.Module:
    """Loads `source` as `load_for_layout` does, an adapter on the model under it, to score and not to train."""
    model: nn.Module = load_for_layout(
        cfgs, spec, source, layout, dtype=dtype, config=config, is_reward_model=is_reward_model
    )
    adapter = find_adapter(source)
    if adapter is not None:
        model = put_on(model, adapter)
    model.requires_grad_(False)
    make_ready(cfgs, spec, model, config)
    return model


def make_ready(cfgs: RunCfgs, spec: FamilySpec, model: nn.Module, config: dict[str, Any]) -> None:
    """Does to a model what is left to do before an engine takes it, once it is frozen and bears its adapters.

    Its frozen towers keep what they compute, where the settings name a folder for it. ZeRO-3 learns what modules read
    of others.
    """
    if zero_stage(config) == 3:
        import deepspeed

        for module, parameter in spec.read_past(bare_model(model)):
            deepspeed.zero.register_external_parameter(module, parameter)
    if cfgs.model_cfgs.feature_cache_dir is not None:
        cache_features(model, spec, cfgs.model_cfgs.feature_cache_dir, in_step=zero_stage(config) == 3)


def _partitioned_loading(config: dict[str, Any]) -> Any:
    from transformers.integrations import HfDeepSpeedConfig

    return HfDeepSpeedConfig(config)
