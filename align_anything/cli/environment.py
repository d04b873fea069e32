"""What a bug report needs to know of an installation and its machine."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, requires, version

import psutil
import torch

from align_anything.configs.redaction import without_secrets

HEARD = ('ALIGN_ANYTHING_', 'CUDA_', 'DS_', 'HF_', 'NCCL_', 'OMP_', 'RANK', 'TRANSFORMERS_', 'VLLM_')


def environment() -> dict[str, str]:
    """Returns what matters of this installation, by name: versions, machine, devices, and variables of the environment.

    Values of variables that hold secrets are left out.
    """
    told = {
        'align-anything': version('align-anything'),
        'python': f'{platform.python_version()} on {platform.platform()}',
        'processor': f'{os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB of memory',
        'devices': _devices(),
        **{name: _version(name) for name in _packages()},
    }
    for name, value in sorted(os.environ.items()):
        if name.startswith(HEARD):
            told[f'${name}'] = without_secrets({name: value}).get(name, '(hidden)')
    return told


def _packages() -> list[str]:
    """Those that align-anything names, its extras included."""
    named = {re.split(r'[^\w.-]', line, maxsplit=1)[0].lower() for line in requires('align-anything') or ()}
    return sorted(named - {'align-anything'})


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return 'not installed'


def _devices() -> str:
    if not torch.cuda.is_available():
        return 'no GPU'
    number = torch.cuda.device_count()
    names = ', '.join(torch.cuda.get_device_name(index) for index in range(number))
    return f'{number} × CUDA {torch.version.cuda}: {names}'
