"""Align any-to-any models: one algorithm, any modality.

`train`, `generate`, `evaluate` and `load_policy` do from Python what the commands do; docs/python.md shows how.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = '0.1.0'

_API = {
    'Callback': 'callbacks',
    'Policy': 'policy',
    'Result': 'training',
    'evaluate': 'evaluation',
    'generate': 'policy',
    'load_policy': 'policy',
    'train': 'training',
}


def __getattr__(name: str) -> Any:
    # Imported when it is asked for: the import of the package itself stays free.
    if name not in _API:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(f'{__name__}.api.{_API[name]}'), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_API})
