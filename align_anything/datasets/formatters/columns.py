"""Reading columns of a raw row, with errors that name what the row has instead."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from align_anything.core.errors import SampleError
from align_anything.core.registry import nearest
from align_anything.datasets.features import Written

Row = Mapping[str, Any]
TOKENIZED = {'input_ids', 'better_input_ids'}
TRUTHS = {'true': True, '1': True, 'false': False, '0': False}


def missing(row: Row, names: Sequence[str]) -> SampleError:
    """Returns the error for a row that has none of the columns `names`."""
    wanted = ' or '.join(f"'{name}'" for name in names)
    present = [str(name) for name in row]
    close = next(filter(None, (nearest(name, present) for name in names)), '')
    tokenized = ' Rows of token ids are for the template Tokenized.' if TOKENIZED & row.keys() else ''
    return SampleError(
        f'the row has no column {wanted}.{close} Its columns: {", ".join(present) or "none"}.{tokenized}'
    )


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
    """Returns `value` as text: numbers as they are written in the file, classes by their names.

    Raises `SampleError` naming `what` and the type for anything else.
    """
    if isinstance(value, str):
        return value
    is_number = isinstance(value, (int, float, Decimal)) and not isinstance(value, bool)
    if not is_number or math.isnan(value):
        raise SampleError(f'{what} should be text but is {type(value).__name__} ({str(value)[:60]}).')
    return str(value)


def number(value: Any, what: str) -> float:
    """Returns a finite number, also from its text. Raises `SampleError` naming `what` for anything else."""
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise SampleError(f'{what} should be a number but is {value!r}.')
    return found


def truth(value: Any, what: str) -> bool:
    """Returns whether `value` is true: a truth value, 1 or 0, or the text of one. Raises `SampleError` for another."""
    said = understood(value)
    if said not in (True, False):
        raise SampleError(f'{what} should be true or false but is {value!r}.')
    return bool(said)


def understood(value: Any) -> Any:
    """Returns the truth value that a text stands for, and any other value as it is."""
    return TRUTHS.get(value.strip().lower(), value) if isinstance(value, str) else value


def text(row: Row, name: str) -> str:
    """Returns the text in column `name`. Raises `SampleError` when it is missing, null or not text."""
    return as_text(column(row, name), f"column '{name}'")


def texts(row: Row, name: str) -> list[str]:
    """Returns the list of texts in column `name`. Raises `SampleError` when it is anything else."""
    return [as_text(value, f"entry {index} of column '{name}'") for index, value in enumerate(items(row, name))]


def items(row: Row, name: str) -> list[Any]:
    """Returns the list in column `name`, also from its JSON text. Raises `SampleError` when there is none."""
    values = from_json(column(row, name))
    if not isinstance(values, (list, tuple)):
        raise SampleError(f"column '{name}' should be a list but is {type(values).__name__}.")
    return list(values)


def turns(row: Row, name: str) -> list[Any]:
    """Returns the list of turns in column `name`: a list of records, a record of equally long lists, or the JSON text
    of either. Raises `SampleError` when there is none.
    """
    value = from_json(column(row, name))
    found = records(value, f"column '{name}'") if isinstance(value, Mapping) else items(row, name)
    if not found:
        raise SampleError(f"the conversation is empty: column '{name}' has 0 turns.")
    return found


def records(value: Mapping[str, Any], what: str) -> list[dict[str, Any]]:
    """Returns a record of equally long lists, as `datasets` keeps lists of records, as a list of records.

    Raises `SampleError` naming `what` when it is no such record.
    """
    columns = {key: values for key, values in value.items() if isinstance(values, (list, tuple))}
    lengths = {len(values) for values in columns.values()}
    if len(columns) < len(value) or len(lengths) != 1:
        held = ', '.join(f'{key} ({type(values).__name__})' for key, values in value.items())
        raise SampleError(
            f'{what} should be a list of turns, or a record of equally long lists, one for each key of a turn, but is '
            f'a record of {held}.'
        )
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def from_json(value: Any) -> Any:
    """Returns the list or record that a JSON text stands for, as tables hold them; any other value as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ('[', '{'):
        try:
            return json.loads(value, parse_float=Written)
        except ValueError:
            return value
    return value


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
