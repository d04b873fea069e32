"""Features of frozen towers on disk: what a tower made of an image, video or audio once is not computed again.

The forward pass of the tower's module is replaced on the live model. Its parameters and their names stay as they are,
so saving knows nothing of it, and projectors train on the features as on the tower's own.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import __version__ as transformers_version

from align_anything.core.distributed import all_reduce_sum
from align_anything.core.errors import ModelError
from align_anything.core.logging import get_logger
from align_anything.core.parameters import gathered
from align_anything.core.store import TensorStore, digest, identity
from align_anything.models.adapter import bare_model
from align_anything.models.family import FamilySpec
from align_anything.models.fingerprint import lasting_settings
from align_anything.models.tower_calls import TOWERS, Features, Item, TowerCalls, arguments_of, is_plain

logger = get_logger(__name__)


@dataclass(frozen=True)
class FrozenTower:
    """A tower whose features can be kept: the name of its module in the plain model, and how its calls are split."""

    name: str
    calls: TowerCalls


def frozen_towers(model: nn.Module, spec: FamilySpec) -> list[FrozenTower]:
    """Returns the towers of a tuned `model`, adapters or none, in which nothing trains. Looks at no weights.

    Raises ModelError when there is none, or when something trains inside one whose output would then change.
    """
    plain, found = bare_model(model), []
    names = [name for component in TOWERS for name in spec.components.get(component, ())]
    for component in TOWERS:
        for name in spec.components.get(component, ()):
            parameters = list(plain.get_submodule(name).named_parameters(prefix=name))
            training = [inner for inner, parameter in parameters if parameter.requires_grad]
            if any(spec.component_of(inner) == component for inner in training):
                continue
            calls = spec.tower_calls(component)
            again = tuple(f'{name}.{projector}.' for projector in calls.projectors)
            within = [inner for inner in training if not inner.startswith(again)]
            if within:
                raise ModelError(
                    f"model_cfgs.feature_cache_dir: '{within[0]}' trains inside the tower '{name}', so its features "
                    'change. Set freeze_mm_proj: True, or leave feature_cache_dir out.'
                )
            found.append(FrozenTower(name, calls))
    if not found:
        raise ModelError(
            f'model_cfgs.feature_cache_dir: no tower of this model ({", ".join(names) or "it has none"}) is frozen, so '
            'there are no features that stay the same. Set freeze_vision_tower: True (freeze_audio_tower for audio), '
            'without adapters in the tower, or leave feature_cache_dir out.'
        )
    return found


def cache_features(model: nn.Module, spec: FamilySpec, folder: str | Path, *, in_step: bool = False) -> None:
    """Makes the frozen towers of a tuned `model` keep their features in a `TensorStore`. Every rank calls it.

    `in_step`: the weights are partitioned among ranks (ZeRO-3), so that either all ranks run a tower or none does.
    Raises as `frozen_towers` does, and SettingsError when `folder` cannot be written to.
    """
    for tower in frozen_towers(model, spec):
        module = bare_model(model).get_submodule(tower.name)
        made_by = fingerprint(module, tower.calls, spec)
        store = TensorStore(folder, 'features', made_by, 'model_cfgs.feature_cache_dir')
        module.forward = CachedTower(module, tower.calls, store, in_step)
        logger.info('features of %s are kept in %s', tower.name, store.folder)


class CachedTower:
    """Stands in for the forward method of a frozen tower. Only items whose features are not kept yet are encoded.

    The tower runs in evaluation mode, since features that dropout has touched would differ from call to call.
    `encoded` counts the items that it ran for.
    """

    def __init__(self, tower: nn.Module, calls: TowerCalls, store: TensorStore, in_step: bool) -> None:
        self.tower, self.calls, self.store, self.in_step = tower, calls, store, in_step
        self.forward: Callable[..., Any] = tower.forward
        self.signature = inspect.signature(tower.forward)
        self.encoded = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        tensors, others = self._arguments(args, kwargs)
        with torch.no_grad():
            features = self._features(self.calls.items(tensors), others)
        return self.calls.outputs(self.tower, features)

    def _features(self, items: list[Item], others: Mapping[str, Any]) -> list[Features]:
        keys = [self.store.key(others, item) for item in items]
        entries = {key: self.store.get(key) for key in keys}
        found = {key: entry and entry.tensors for key, entry in entries.items()}
        missing = {key: item for key, item in zip(keys, items, strict=True) if found[key] is None}
        device = next(iter(items[0].values())).device
        needed = torch.tensor(float(bool(missing)), device=device)
        if float(all_reduce_sum(needed) if self.in_step else needed):
            # Where only other ranks miss something, one item keeps this rank in step.
            made = self._encode(list(missing.values()) or items[:1], others)
            for key, features in zip(missing, made, strict=False):
                self.store.put(key, features)
                found[key] = features
            self.encoded += len(missing)
        return [{name: value.to(device) for name, value in found[key].items()} for key in keys]

    def _encode(self, items: list[Item], others: Mapping[str, Any]) -> list[Features]:
        training = self.tower.training
        self.tower.eval()
        try:
            return self.calls.encode(self.tower, self.forward, items, others)
        finally:
            self.tower.train(training)

    def _arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The arguments of a call by name, tensors apart."""
        tensors, others = arguments_of(self.signature, args, kwargs)
        if not tensors or not is_plain(list(others.values())):
            given = sorted({**tensors, **others})
            raise ModelError(
                f'model_cfgs.feature_cache_dir: {type(self.tower).__name__} is called with {given}, by which its media '
                'cannot be told apart. Leave feature_cache_dir out.'
            )
        return tensors, others


def fingerprint(tower: nn.Module, calls: TowerCalls, spec: FamilySpec) -> str:
    """Returns a digest of everything that the features of an item hang on, the item aside: weights, class, settings.

    Partitioned weights are gathered one by one, so every rank has to call it.
    """
    config = tower.config if isinstance(tower, PreTrainedModel) else spec.config
    kinds = [type(tower).__qualname__, type(calls).__qualname__, transformers_version, calls.layers]
    settings = json.dumps(lasting_settings(config), sort_keys=True, default=str)
    # The state holds what quantised weights need beside them, the buffers also what is never saved.
    state = {**dict(tower.named_buffers()), **tower.state_dict(keep_vars=True)}
    again = tuple(f'{name}.' for name in calls.projectors)
    known = {}
    for name, value in sorted(state.items()):
        if isinstance(value, Tensor) and not name.startswith(again):
            known[name] = identity(gathered(value))
    return digest(kinds, settings, known)
