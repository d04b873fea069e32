"""What the kinds of models that act have in common, as runs take them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from align_anything.algorithms.base import Algorithm
from align_anything.configs.resolve import Resolved
from align_anything.configs.schema import RunCfgs
from align_anything.core.errors import ModelError
from align_anything.models.acting import checkpoint
from align_anything.models.adapter import find_adapter, put_on
from align_anything.models.spec import Spec
from align_anything.models.trainable import require_trainable
from align_anything.policies.base import Collator
from align_anything.trainers.pairs import Pair


def with_saved_adapter(cfgs: RunCfgs, spec: Spec, model: nn.Module, source: str, dtype: torch.dtype) -> nn.Module:
    """Puts the adapter in `source`, if that is one, frozen onto the model that was loaded from under it."""
    adapter = find_adapter(source)
    return model if adapter is None else put_on(model, adapter)


def skeleton(spec: Spec) -> nn.Module:
    """The model of a checkpoint without weights."""
    return checkpoint.skeleton(spec)


def activations(
    cfgs: RunCfgs, spec: Spec, model: nn.Module, algorithm: Algorithm, size: int, positions: Mapping[str, int]
) -> None:
    """Not known: it hangs on how many pictures there are, of which frozen encoders keep nothing."""
    return


def router_coefficient(cfgs: RunCfgs, algorithm: Algorithm, model: nn.Module) -> float:
    """None: no model that acts is a mixture of experts."""
    return 0.0


def make_ready(cfgs: RunCfgs, spec: Spec, model: nn.Module, config: dict[str, Any]) -> None:
    """Nothing is left to do before an engine takes it."""


def kernels(cfgs: RunCfgs, collate: Collator, model: nn.Module) -> dict[str, str]:
    """None that settings decide."""
    return {}


def require_same_space(resolved: Resolved, spec: Spec) -> None:
    """Raises ModelError for a reference that acts in another space, is of another type or has another kind of head."""
    source = resolved.algorithm.reference_model_name_or_path if resolved.algorithm.refers else None
    if source in (None, resolved.cfgs.model_cfgs.model_name_or_path):
        return
    other = checkpoint.load_action_spec(source)
    names = ('names', 'dimensions', 'chunk', 'cameras', 'statistics')
    told = [name for name in names if getattr(other.space, name) != getattr(spec.space, name)]
    told += ['model_type'] if other.model_type != spec.model_type else []
    told += ['head'] if other.meets != spec.meets else []
    if told:
        raise ModelError(
            f'train_cfgs.reference_model_name_or_path: {source} acts otherwise than the policy ({", ".join(told)}): '
            'name a reference with the same action space.'
        )


def require_trained(cfgs: RunCfgs, algorithm: Algorithm, collate: Collator, model: nn.Module, pair: Pair) -> None:
    """Raises ModelError when nothing trains; episodes reach all of the model."""
    require_trainable(model)


def kept_features(cfgs: RunCfgs, spec: Spec, model: nn.Module) -> list[str]:
    """None."""
    return []
