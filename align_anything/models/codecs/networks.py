"""Networks of codecs: loaded whole and frozen, from a folder of their own or out of a whole model's checkpoint."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.integrations import deepspeed

from align_anything.core.errors import ModelError
from align_anything.models.checkpoint import stored_module


def network_class(name: str) -> Any:
    """Returns a class of transformers. Raises ModelError where the installed version has none of that name."""
    try:
        return getattr(transformers, name)
    except (AttributeError, ImportError) as error:
        raise ModelError(f'transformers {transformers.__version__} has no usable {name}: {error}') from error


def network_config(folder: Path, name: str, config: Mapping[str, Any]) -> Any:
    """Returns the configuration of a network as its class reads it. Raises ModelError for one that it refuses."""
    try:
        return network_class(name).config_class.from_dict(dict(config))
    except (StrictDataclassError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f'{folder} is no {name} as transformers knows it: {error}') from error


def load_codec(name: str, folder: Path, module: str, settings: Mapping[str, Any]) -> nn.Module:
    """Returns the network of a codec in a folder of its own, or with a `module` that of a whole model's checkpoint.

    `name` is its class in transformers, `settings` its configuration. Raises ModelError as `load_network`.
    """
    kind = network_class(name)
    if not module:
        return load_network(kind, folder)
    config = network_config(folder, name, settings)
    return load_network(kind, folder, stored_module(folder, module), config=config)


def copy_module(folder: Path, module: str, out: Path, files: Sequence[str]) -> None:
    """Writes a module of a whole model's checkpoint into the new folder `out`, with those of the `files` it has."""
    out.mkdir(parents=True)
    for name in files:
        if (folder / name).is_file():
            shutil.copy(folder / name, out)
    own = {f'{module}.{name}': tensor.contiguous() for name, tensor in stored_module(folder, module).items()}
    save_file(own, out / 'model.safetensors', {'format': 'pt'})


def load_network(kind: Any, folder: Path, weights: Mapping[str, Tensor] | None = None, **options: Any) -> nn.Module:
    """Returns a network of the class `kind` from a folder, or with `weights` that were read already, frozen, float32.

    Raises ModelError where it does not load, or weights are missing or have other shapes.
    """
    given = {} if weights is None else {'state_dict': dict(weights)}
    try:
        with _not_partitioned():
            network, report = kind.from_pretrained(
                folder if weights is None else None,
                dtype=torch.float32,
                output_loading_info=True,
                **given,
                **options,
            )
    except (SafetensorError, OSError, ValueError, RuntimeError, ImportError) as error:
        raise ModelError(f'{folder} does not load as {kind.__name__}: {error}') from error
    missing = sorted(report['missing_keys'])
    if missing:
        raise ModelError(f'{folder} lacks {len(missing)} weights of {kind.__name__}, {missing[0]} among them.')
    return frozen(network)


def frozen(network: nn.Module) -> nn.Module:
    """Returns the network in evaluation mode, in float32, its parameters without gradients."""
    return network.float().eval().requires_grad_(False)


def weights_fingerprint(weights: Mapping[str, Tensor], *settings: Any) -> str:
    """Returns a digest of weights, whatever they are stored as, and of settings that can be written as JSON."""
    found = hashlib.blake2b(digest_size=20)
    for setting in settings:
        found.update(json.dumps(setting, sort_keys=True, default=str).encode())
    for name in sorted(weights):
        found.update(f'{name} {tuple(weights[name].shape)}\n'.encode())
        found.update(weights[name].float().contiguous().numpy().tobytes())
    return found.hexdigest()


@contextmanager
def _not_partitioned() -> Iterator[None]:
    """Keeps transformers from partitioning what it loads, as it does all through a run of ZeRO-3."""
    kept = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = kept
