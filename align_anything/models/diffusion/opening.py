"""Pipelines of diffusers without their denoiser: what is frozen around it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from align_anything.core.errors import ModelError
from align_anything.models.diffusion.library import component_class, pipeline_class, quiet, require_diffusers


def open_without(
    folder: Path,
    index: Mapping[str, Any],
    configs: Mapping[str, Mapping[str, Any]],
    denoisers: Collection[str],
    unopened: Collection[str],
    device: torch.device,
    dtype: torch.dtype,
) -> Any:
    """Loads a pipeline without its denoisers and what is `unopened`, frozen and in evaluation mode, its bars off.

    Pipelines ask a denoiser for its configuration; that it has in its place. Raises ModelError where a component does
    not load.
    """
    diffusers = require_diffusers()
    # A component that was saved as None has to be named, or loading fails for want of it.
    empty = {name for name, origin in index.items() if isinstance(origin, list) and origin[0] is None}
    given: dict[str, Any] = {name: None for name in {*empty, *unopened} if name in index}
    kind = pipeline_class(index['_class_name'], folder)
    try:
        with torch.device('meta'):
            given |= {name: skeleton(index, configs, folder, name) for name in denoisers}
        with quiet():
            pipeline = kind.from_pretrained(str(folder), dtype=dtype, local_files_only=True, **given)
    except (OSError, ValueError, RuntimeError, TypeError, ImportError, KeyError) as error:
        raise ModelError(f'{folder} does not load as {index["_class_name"]}: {error}') from error
    for name in denoisers:
        config = diffusers.configuration_utils.FrozenDict(configs[name])
        # Past the pipeline's own bookkeeping, which writes the class of a component into its index.
        vars(pipeline)[name] = SimpleNamespace(config=config, dtype=dtype)
    pipeline.to(device)
    for component in pipeline.components.values():
        if isinstance(component, nn.Module):
            component.eval().requires_grad_(False)
    if dtype == torch.float16 and configs.get('vae', {}).get('force_upcast', True):
        # That of Stable Diffusion XL overflows.
        pipeline.vae.float()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def skeleton(index: Mapping[str, Any], configs: Mapping[str, Mapping[str, Any]], folder: Path, name: str) -> nn.Module:
    """Returns the network of a component's configuration. Raises ModelError for a class that is not there."""
    kind = component_class(index[name], folder)
    if index[name][0] == 'transformers':
        return kind(kind.config_class(**configs[name]))
    return kind.from_config(dict(configs[name]))
