"""Checkpoints whose every weight matters: tiny ones with noise on all parameters."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.harness.once import once
from tests.invariants.families import OPTIONS


@pytest.fixture(scope='session')
def stirred(tiny: Callable[..., Path], shared_cache: Path) -> Callable[..., Path]:
    """`stirred('llava')` is the folder of a tiny checkpoint without zero biases, unit norms or equal rows."""

    def checkpoint(family: str, **other: int) -> Path:
        source = tiny(family, **{**OPTIONS.get(family, {}), **other})

        def stir(folder: Path) -> None:
            shutil.copytree(source, folder)
            generator = torch.Generator().manual_seed(11)
            weights = load_file(source / 'model.safetensors')
            for name in sorted(weights):
                weights[name] = weights[name] + 0.05 * torch.randn(weights[name].shape, generator=generator)
            save_file(weights, folder / 'model.safetensors', {'format': 'pt'})

        return once(shared_cache, '-'.join([family, 'stirred', *map(str, other.values())]), stir)

    return checkpoint
