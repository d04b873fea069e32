"""The FamilySpec of a checkpoint: the family's own, else the default."""

from __future__ import annotations

from typing import Any

from align_anything.models.accustomed import family_module
from align_anything.models.family import FamilySpec


def spec_for(
    config: Any, tokenizer: Any, processor: Any = None, *, max_length: int, generation_config: Any = None
) -> FamilySpec:
    """Returns the FamilySpec of a checkpoint; `processor` is None for text families. Raises as the spec does."""
    module = family_module(config.model_type)
    kind = FamilySpec if module is None else module.SPEC
    return kind(config, tokenizer, processor, max_length=max_length, generation_config=generation_config)
