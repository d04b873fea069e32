"""Which family serves a checkpoint: the file named after its `model_type`, else the default."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import Any

from align_anything.models.family import FamilySpec
from align_anything.models.structure import auto_class

ACCUSTOMED = 'align_anything.models.accustomed'


def family_module(model_type: str) -> ModuleType | None:
    """Imports `models/accustomed/<model_type>.py`, or returns None when the family has no file."""
    name = f'{ACCUSTOMED}.{model_type.replace("-", "_")}'
    return importlib.import_module(name) if importlib.util.find_spec(name) else None


def accustomed_class(model_type: str, head: str = 'lm') -> type | None:
    """Returns the family's own class with that head (`lm`), or None when transformers' class serves."""
    module = family_module(model_type)
    return module.MODEL if module is not None and head == 'lm' else None


def default_auto_class(config: Any) -> Any:
    """Returns AutoModelForImageTextToText where it knows the configuration, else AutoModelForCausalLM."""
    return auto_class(config)


def spec_for(
    config: Any, tokenizer: Any, processor: Any = None, *, max_length: int, generation_config: Any = None
) -> FamilySpec:
    """Returns the FamilySpec of a checkpoint; `processor` is None for text families. Raises ModelError as the spec does."""
    module = family_module(config.model_type)
    kind = FamilySpec if module is None else module.SPEC
    return kind(config, tokenizer, processor, max_length=max_length, generation_config=generation_config)
