"""Families with a file of their own. The file's name is the `model_type` of the configuration it serves.

Each file holds `MODEL`, the model class, and `SPEC`, the family's `FamilySpec`. None is imported before a checkpoint of
its family is asked for. An Accustomed class adds methods to transformers' class, never state.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType


def family_module(model_type: str) -> ModuleType | None:
    """Imports `models/accustomed/<model_type>.py`, or returns None when the family has no file."""
    name = f'{__name__}.{model_type.replace("-", "_")}'
    return importlib.import_module(name) if importlib.util.find_spec(name) else None


def accustomed_class(model_type: str) -> type | None:
    """Returns the family's own model class, or None when transformers' class serves."""
    module = family_module(model_type)
    return None if module is None else module.MODEL
