"""What all groups of settings share."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from align_anything.configs.annotations import NULLS, shape_of
from align_anything.configs.effects import Effects


class Cfgs(BaseModel):
    """Base of all settings: frozen, no unknown keys, no infinities, no truth value instead of a number."""

    model_config = ConfigDict(frozen=True, extra='forbid', allow_inf_nan=False, coerce_numbers_to_str=True)
    takes_effect: ClassVar[Effects] = {}

    @field_validator('*', mode='before')
    @classmethod
    def _tidy(cls, value: Any, info: ValidationInfo) -> Any:
        shape = shape_of(cls.model_fields[info.field_name].annotation)
        if shape.null and isinstance(value, str) and value.lower() in NULLS:
            return None
        if isinstance(value, bool) and bool not in shape.numbers and not shape.anything:
            raise PydanticCustomError('truth_value', 'a truth value does not fit here')
        return value
