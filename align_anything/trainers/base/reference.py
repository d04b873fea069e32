"""The reference model of a run: the policy without its adapter, or a frozen copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from align_anything.algorithms.base import Algorithm
from align_anything.algorithms.referring import Referring
from align_anything.configs.deepspeed_files import load_deepspeed_config
from align_anything.configs.schema import RunCfgs
from align_anything.core.distributed import world_size
from align_anything.core.logging import get_logger
from align_anything.core.parameters import is_partitioned
from align_anything.core.types import Batch, Scored
from align_anything.engines.deepspeed_config import build_config
from align_anything.engines.deepspeed_engine import DeepSpeedEngine
from align_anything.engines.frozen import FrozenEngine
from align_anything.models.adapter import find_adapter
from align_anything.models.family import FamilySpec
from align_anything.models.trainable import plain_name
from align_anything.policies.token_policy import TokenPolicy
from align_anything.trainers.base.assembly import DTYPES, Assembled, keep_features, load_for_layout, precision_of

logger = get_logger(__name__)

Scorer = Callable[[Batch], Scored]


def make_roles(cfgs: RunCfgs, algorithm: Algorithm, spec: FamilySpec, assembled: Assembled) -> dict[str, Scorer]:
    """What scores batches beside the policy, by role."""
    if not isinstance(algorithm, Referring):
        return {}
    if without_adapter_is_reference(cfgs, algorithm):
        logger.info('reference: the model without the adapter')
        return {'reference': adapter_off(assembled.engine, assembled.model)}
    return {'reference': frozen_copy(cfgs, algorithm, spec, assembled)}


def without_adapter_is_reference(cfgs: RunCfgs, algorithm: Referring) -> bool:
    """Whether switching the adapter off gives the reference: not when training goes on from a trained adapter."""
    source = cfgs.model_cfgs.model_name_or_path
    same = algorithm.reference_model_name_or_path in (None, source)
    return cfgs.lora_cfgs.use_lora and same and find_adapter(source) is None


def adapter_off(engine: DeepSpeedEngine, model: Any) -> Scorer:
    """Scores with the weights under the adapter of `model`, the one that `engine` trains."""

    def score(batch: Batch) -> Scored:
        training = engine.engine.training
        engine.engine.eval()
        with torch.no_grad(), model.disable_adapter():
            scored = engine.score(batch)
        engine.engine.train(training)
        return scored

    return score


def frozen_copy(cfgs: RunCfgs, algorithm: Referring, spec: FamilySpec, assembled: Assembled) -> Scorer:
    """Loads the reference and lets it share the weights that the policy keeps frozen too."""
    source = algorithm.reference_model_name_or_path or cfgs.model_cfgs.model_name_or_path
    precision = precision_of(cfgs) if algorithm.reference_dtype == 'auto' else algorithm.reference_dtype
    config = build_config(
        load_deepspeed_config(algorithm.reference_ds_cfgs or cfgs.train_cfgs.ds_cfgs),
        micro_batch=cfgs.train_cfgs.per_device_train_batch_size,
        accumulation=1,
        world_size=world_size(),
        precision=precision,
        max_grad_norm=0.0,
        optimizer='',
    )
    dtype = DTYPES[precision]
    model: nn.Module = load_for_layout(cfgs, spec, source, assembled.collator.layout, dtype=dtype, config=config)
    keep_features(cfgs, spec, model.requires_grad_(False), config)
    if find_adapter(source) is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, source)
    policy = TokenPolicy(model, softcap=spec.softcap, logit_scale=spec.logit_scale, dtype=dtype)
    engine = FrozenEngine(policy, config, assembled.engine.device)
    shared = share_frozen(assembled.model, model)
    logger.info('reference: a frozen copy of %s in %s, %d weights shared with the policy', source, precision, shared)
    return engine.score


def share_frozen(policy: nn.Module, reference: nn.Module) -> int:
    """Gives weights of `reference` that `policy` keeps frozen, and that are equal, one storage; returns how many."""
    theirs = {plain_name(name): parameter for name, parameter in reference.named_parameters()}
    shared = 0
    for name, parameter in policy.named_parameters():
        other = theirs.get(plain_name(name))
        if other is None or parameter.requires_grad or is_partitioned(parameter) or is_partitioned(other):
            continue
        if parameter.dtype == other.dtype and torch.equal(parameter, other):
            other.data = parameter.data
            shared += parameter.numel()
    return shared
