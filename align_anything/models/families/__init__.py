"""Families with a file of their own. The file's name is the `model_type` of the configuration it serves.

Each file holds `MODEL`, the model class, and `SPEC`, the family's `FamilySpec`; where the model's body takes media in
another form than transformers' (clips of unequal length, say), also `BODY`, its class. None is imported before a
checkpoint of its family is asked for. An Accustomed class adds methods to transformers' class, never state.

For a family whose class comes with the checkpoint, `MODEL` and `BODY` derive from no module: they are joined with the
class when it is loaded. `LOADING` holds settings of its configuration to load it with.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import Any

from align_anything.models.family import FamilySpec


def family_module(model_type: str) -> ModuleType | None:
    """Imports `models/families/<model_type>.py`, or returns None when the family has no file."""
    name = f'{__name__}.{model_type.replace("-", "_")}'
    return importlib.import_module(name) if importlib.util.find_spec(name) else None


def accustomed_class(model_type: str) -> type | None:
    """Returns the family's own model class, or None when transformers' class serves."""
    module = family_module(model_type)
    return None if module is None else module.MODEL


def accustomed_body(model_type: str) -> type | None:
    """Returns the family's own class of the model's body, or None when transformers' class serves."""
    module = family_module(model_type)
    return None if module is None else vars(module).get('BODY')


def loading_options(model_type: str) -> dict[str, Any]:
    """Returns settings of the configuration that the family is loaded with."""
    module = family_module(model_type)
    return {} if module is None else dict(vars(module).get('LOADING', {}))


def spec_for(
    config: Any, tokenizer: Any, processor: Any = None, *, max_length: int, generation_config: Any = None
) -> FamilySpec:
    """Returns the FamilySpec of a checkpoint, the family's own or else the default. Raises as the spec does.

    `processor` is None for text families.
    """
    module = family_module(config.model_type)
    kind = FamilySpec if module is None else module.SPEC
    return kind(config, tokenizer, processor, max_length=max_length, generation_config=generation_config)
