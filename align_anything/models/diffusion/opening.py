"""Pipelines of diffusers without their denoiser: what is frozen around it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from align_anything.core.errors import ModelError
from align_anything.models.diffusion.library import pipeline_class, quiet, require_diffusers


def open_without(
    folder: Path,
    index: Mapping[str, Any],
    configs: Mapping[str, Mapping[str, Any]],
    absent: Collection[str],
    device: torch.device,
    dtype: torch.dtype,
) -> Any:
    """Loads a pipeline without the components of `absent`, frozen and in evaluation mode, its progress bars off.

    Absent networks are asked for their configuration all the same; that they have. Raises ModelError where a component
    does not load.
    """
    diffusers = require_diffusers()
    # A component that was saved as None has to be named, or loading fails for want of it.
    empty = {name for name, origin in index.items() if isinstance(origin, list) and origin[0] is None}
    left_out = {name: None for name in {*empty, *absent} if name in index}
    kind = pipeline_class(index['_class_name'], folder)
    try:
        with quiet():
            pipeline = kind.from_pretrained(str(folder), dtype=dtype, local_files_only=True, **left_out)
    except (OSError, ValueError, RuntimeError, TypeError, ImportError, KeyError) as error:
        raise ModelError(f'{folder} does not load as {index["_class_name"]}: {error}') from error
    pipeline.to(device)
    networks = [component for component in pipeline.components.values() if isinstance(component, nn.Module)]
    for network in networks:
        network.eval().requires_grad_(False)
    for name in absent:
        if name in configs:
            config = diffusers.configuration_utils.FrozenDict(configs[name])
            # Past the pipeline's own bookkeeping, which writes the class of a component into its index.
            vars(pipeline)[name] = SimpleNamespace(config=config, dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
