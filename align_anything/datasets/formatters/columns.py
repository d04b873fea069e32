"""Reading columns of a raw row, with errors that name what the row has instead."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from align_anything.core.errors import SampleError
from align_anything.core.registry import nearest

Row = Mapping[str, Any]


def missing(row: Row, names: Sequence[str]) -> SampleError:
    """Returns the error for a row that has none of the columns `names`."""
    wanted = ' or '.join(f"'{name}'" for name in names)
    present = [str(name) for name in row]
    close = next(filter(None, (nearest(name, present) for name in names)), '')
    return SampleError(f'the row has no column {wanted}.{close} Its columns: {", ".join(present) or "none"}.')


def column(row: Row, name: str) -> Any:
    """Returns the value of column `name`. Raises `SampleError` when the row lacks it or holds null there."""
    if name not in row:
        raise missing(row, [name])
    if row[name] is None:
        raise SampleError(f"column '{name}' is null in this row.")
    return row[name]


def filled(row: Row, name: str) -> bool:
    """Tells whether the row has column `name` and holds something other than null there."""
    return row.get(name) is not None


def as_text(value: Any, what: str) -> str:
    """Returns `value` as text; numbers are written out, since CSV readers turn answers such as `7` into numbers.

    Raises `SampleError` naming `what` and the type for anything else.
    """
    if isinstance(value, str):
        return value
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or math.isnan(value):
        raise SampleError(f'{what} should be text but is {type(value).__name__} ({str(value)[:60]}).')
    return str(value)


def text(row: Row, name: str) -> str:
    """Returns the text in column `name`. Raises `SampleError` when it is missing, null or not text."""
    return as_text(column(row, name), f"column '{name}'")


def texts(row: Row, name: str) -> list[str]:
    """Returns the list of texts in column `name`. Raises `SampleError` when it is anything else."""
    return [as_text(value, f"entry {index} of column '{name}'") for index, value in enumerate(items(row, name))]


def items(row: Row, name: str) -> list[Any]:
    """Returns the list in column `name`. Raises `SampleError` when it is missing or no list."""
    values = column(row, name)
    if not isinstance(values, (list, tuple)):
        raise SampleError(f"column '{name}' should be a list but is {type(values).__name__}.")
    return list(values)


def chosen_id(row: Row, name: str, allowed: Sequence[int]) -> int:
    """Returns which response column `name` prefers. Raises `SampleError` when it is none of `allowed`."""
    value = column(row, name)
    if str(value) not in {str(number) for number in allowed}:
        raise SampleError(f"column '{name}' should be one of {list(allowed)} to prefer a response but is {value!r}.")
    return int(value)


def is_chosen_id(row: Row, name: str, allowed: Sequence[int]) -> bool:
    """Tells whether the preference in column `name`, where the row has that column at all, is one of `allowed`."""
    return name not in row or str(row[name]) in {str(number) for number in allowed}


def first_of(row: Row, names: Sequence[str]) -> str:
    """Returns the first of the columns `names` that the row has. Raises `SampleError` when it has none."""
    for name in names:
        if name in row:
            return name
    raise missing(row, names)
