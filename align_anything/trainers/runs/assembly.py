"""From the settings to a policy in an engine: partitioned loading, freezing and adapters, optimizer, self-check."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from align_anything.algorithms.base import Algorithm
from align_anything.configs.resolve import Resolved
from align_anything.configs.schema import RunCfgs
from align_anything.core.logging import get_logger
from align_anything.engines.base import Engine
from align_anything.engines.frozen import FrozenEngine
from align_anything.engines.opening import open_engine
from align_anything.engines.optim import make_optimizer, make_schedule, parameter_groups
from align_anything.engines.process_group import device_of_rank
from align_anything.models.dropout import switch_off_dropout
from align_anything.models.spec import Spec
from align_anything.models.trainable import learning_rates
from align_anything.policies.base import Collator, Policy
from align_anything.trainers.pairs import Pair
from align_anything.trainers.runs import action_models, flow_models, pipelines, token_models
from align_anything.trainers.runs.settings import dtype_of, engine_config, precision_of, told_of_activations

logger = get_logger(__name__)


class ModelKind(Protocol):
    """What runs need of a kind of models, one file each in this package; the spec of a checkpoint says which it is."""

    def make_collator(self, cfgs: RunCfgs, spec: Spec, pair: Pair, algorithm: Algorithm) -> Collator: ...

    def evaluating(self, cfgs: RunCfgs, collate: Collator) -> Collator: ...

    def make_policy(self, scores: str, model: nn.Module, collate: Collator, dtype: torch.dtype) -> Policy: ...

    def build_on_meta(self, cfgs: RunCfgs, spec: Spec, algorithm: Algorithm) -> nn.Module: ...

    def skeleton(self, spec: Spec) -> nn.Module: ...

    def tune(self, cfgs: RunCfgs, spec: Spec, model: nn.Module, algorithm: Algorithm) -> nn.Module: ...

    def activations(
        self, cfgs: RunCfgs, spec: Spec, model: nn.Module, algorithm: Algorithm, size: int, positions: Mapping[str, int]
    ) -> float | None: ...

    def router_coefficient(self, cfgs: RunCfgs, algorithm: Algorithm, model: nn.Module) -> float: ...

    def load(
        self,
        cfgs: RunCfgs,
        collate: Collator,
        source: str,
        *,
        dtype: torch.dtype,
        config: dict[str, Any],
        is_reward_model: bool,
    ) -> nn.Module: ...

    def make_ready(self, cfgs: RunCfgs, spec: Spec, model: nn.Module, config: dict[str, Any]) -> None: ...

    def kernels(self, cfgs: RunCfgs, collate: Collator, model: nn.Module) -> dict[str, str]: ...

    def check_model(self, resolved: Resolved, spec: Spec) -> None: ...

    def require_trained(
        self, cfgs: RunCfgs, algorithm: Algorithm, collate: Collator, model: nn.Module, pair: Pair
    ) -> None: ...

    def kept_features(self, cfgs: RunCfgs, spec: Spec, model: nn.Module) -> list[str]: ...

    def save(
        self, cfgs: RunCfgs, spec: Spec, model: nn.Module, state: dict[str, Tensor] | None, folder: Path
    ) -> None: ...


KINDS: Mapping[str, ModelKind] = {
    'token': token_models,
    'denoising step': pipelines,
    'action': action_models,
    'denoised action': flow_models,
}
"""By what a unit of their responses is, see `Spec.unit`."""


def make_collator(cfgs: RunCfgs, spec: Spec, pair: Pair, algorithm: Algorithm) -> Collator:
    """The collator of the run's policy."""
    return KINDS[spec.unit].make_collator(cfgs, spec, pair, algorithm)


def evaluating(cfgs: RunCfgs, collate: Collator) -> Collator:
    """What collates the evaluation data of a run whose training data `collate` does."""
    return KINDS[collate.spec.unit].evaluating(cfgs, collate)


def build_on_meta(cfgs: RunCfgs, spec: Spec, algorithm: Algorithm) -> tuple[nn.Module, dict[str, float]]:
    """The model tuned as the settings ask, without weights, and its learning rates.

    Raises ModelError for whatever is wrong with what should train, before any weight is read.
    """
    model = KINDS[spec.unit].build_on_meta(cfgs, spec, algorithm)
    return model, parameter_rates(cfgs, spec, model)


def skeleton(spec: Spec) -> nn.Module:
    """The model of a checkpoint without weights."""
    return KINDS[spec.unit].skeleton(spec)


def activations(
    cfgs: RunCfgs, spec: Spec, model: nn.Module, algorithm: Algorithm, size: int, positions: Mapping[str, int]
) -> float | None:
    """Returns the bytes that a model without weights keeps of a micro-batch for its backward pass, None if not known.

    `size` counts tokens, or samples that are denoised, and `positions` those of the towers of a token model.
    """
    return KINDS[spec.unit].activations(cfgs, spec, model, algorithm, size, positions)


def check_model(resolved: Resolved, spec: Spec) -> None:
    """Raises SettingsError or ModelError for settings that mean nothing, or are wrong, for models of this kind."""
    KINDS[spec.unit].check_model(resolved, spec)


def require_trained(cfgs: RunCfgs, algorithm: Algorithm, collate: Collator, model: nn.Module, pair: Pair) -> None:
    """Raises ModelError where a model, tuned as the settings ask, could not learn from rows of the pair."""
    KINDS[collate.spec.unit].require_trained(cfgs, algorithm, collate, model, pair)


def kept_features(cfgs: RunCfgs, spec: Spec, model: nn.Module) -> list[str]:
    """The components whose features are kept, where the settings name a folder for them."""
    return KINDS[spec.unit].kept_features(cfgs, spec, model)


def kernels(cfgs: RunCfgs, collate: Collator, model: nn.Module) -> dict[str, str]:
    """What computes, by what it is called, where settings or the machine decide it."""
    return KINDS[collate.spec.unit].kernels(cfgs, collate, model)


def save(cfgs: RunCfgs, spec: Spec, model: nn.Module, state: dict[str, Tensor] | None, folder: Path) -> None:
    """Writes a trained model to `folder`, with its `state` where it is partitioned. Call it on one rank."""
    KINDS[spec.unit].save(cfgs, spec, model, state, folder)


def parameter_rates(cfgs: RunCfgs, spec: Spec, model: nn.Module) -> dict[str, float]:
    """The learning rate of each trainable parameter of `model` by name."""
    return learning_rates(model, spec.components, cfgs.train_cfgs.learning_rate, cfgs.train_cfgs.lr_groups)


def assemble(cfgs: RunCfgs, algorithm: Algorithm, collate: Collator, total_steps: int) -> Engine:
    """Loads the model, wraps it and checks it. Every rank calls it, with a process group in place.

    The check may replace the collator: batches are made by that of the engine's policy from then on.
    """
    config, optimizer_name = engine_config(cfgs)
    train, spec, dtype = cfgs.train_cfgs, collate.spec, dtype_of(cfgs)
    source, is_reward_model = cfgs.model_cfgs.model_name_or_path, algorithm.scores != 'tokens'
    kind = KINDS[spec.unit]
    model = kind.load(cfgs, collate, source, dtype=dtype, config=config, is_reward_model=is_reward_model)
    tuned = kind.tune(cfgs, spec, model, algorithm)
    if algorithm.has_ratios and (dropout := switch_off_dropout(tuned)):
        logger.info('dropout: off, where the checkpoint has up to %g; the update compares scores without', dropout)
    kind.make_ready(cfgs, spec, tuned, config)
    policy = kind.make_policy(algorithm.scores, tuned, collate, dtype)
    rates = {f'model.{name}': rate for name, rate in parameter_rates(cfgs, spec, tuned).items()}

    def optimize(module: nn.Module) -> torch.optim.Optimizer:
        rate, decay = train.learning_rate, train.weight_decay
        groups = parameter_groups(module.named_parameters(), learning_rate=rate, weight_decay=decay, rates=rates)
        return make_optimizer(optimizer_name, groups, betas=train.adam_betas, eps=train.adam_epsilon)

    engine = open_engine(
        policy,
        config,
        optimize,
        lambda base: make_schedule(
            base, train.lr_scheduler_type, warmup_ratio=train.lr_warmup_ratio, total_steps=total_steps
        ),
        router_coefficient=kind.router_coefficient(cfgs, algorithm, model),
        copies=train.sequence_parallel_size,
    )
    attention = cfgs.model_cfgs.attn_implementation
    logger.info('in force: %s, %s, optimizer %s, %s', engine.in_force, precision_of(cfgs), optimizer_name, attention)
    logger.info('activations: %s', told_of_activations(cfgs))
    if train.activation_offloading and engine.device.type == 'cpu':
        logger.warning('train_cfgs.activation_offloading: on a CPU activations are in host memory anyway.')
    engine.check()
    logger.info('layout: %s', policy.collate.layout)
    for name, told in kind.kernels(cfgs, policy.collate, tuned).items():
        logger.info('%s: %s', name, told)
    if spec.codes is not None and spec.codes.further and algorithm.depth_coefficient is None:
        logger.info(
            'codes: the %d behind the first one of each frame are read and not scored; what writes them and embeds '
            'codes is frozen',
            spec.codes.further,
        )
    return engine


def open_frozen(
    cfgs: RunCfgs, collate: Collator, source: str, *, scores: str, dtype: torch.dtype, config: dict[str, Any]
) -> FrozenEngine:
    """Loads the model `source` to give `scores` and not to train, an adapter on the model under it."""
    kind, spec = KINDS[collate.spec.unit], collate.spec
    model = kind.load(cfgs, collate, source, dtype=dtype, config=config, is_reward_model=scores != 'tokens')
    model = kind.with_saved_adapter(cfgs, spec, model, source, dtype).requires_grad_(False)
    kind.make_ready(cfgs, spec, model, config)
    return FrozenEngine(kind.make_policy(scores, model, collate, dtype), config, device_of_rank())


def open_scorer(cfgs: RunCfgs, collate: Collator, source: str) -> FrozenEngine:
    """Loads the model `source`, which has a score head, and checks it; `collate` is that of its own family."""
    config = engine_config(cfgs)[0]
    engine = open_frozen(cfgs, collate, source, scores='responses', dtype=dtype_of(cfgs), config=config)
    engine.policy.check(engine.module, engine.device)
    return engine
