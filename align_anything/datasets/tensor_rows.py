"""Rows that `torch.save` wrote: the files of token ids that align-anything's tokenizing scripts make."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from align_anything.core.errors import DataError
from align_anything.datasets.rows import Row


class TensorRows:
    """A list of records of tensors, numbers and texts, held in memory. Whole numbers come out as lists."""

    def __init__(self, path: Path, records: list[dict[str, Any]]) -> None:
        self.path, self._records = path, records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Row:
        return {name: _listed(value) for name, value in self._records[index].items()}

    def row_name(self, index: int) -> str:
        return f'{self.path}:{index + 1}'


def read_tensors(path: Path) -> TensorRows:
    """Opens a file of `torch.save`. It is read with `weights_only`, so that no code in it is run.

    Raises DataError for a file that cannot be read so, or that holds something else than a list of records.
    """
    try:
        value = torch.load(path, map_location='cpu', weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f'{path}: cannot be read as tensors, numbers and texts ({reason}). Write its rows anew with torch.save, as '
            'a list of records of such values, or as JSON.'
        ) from error
    if not isinstance(value, list):
        raise DataError(f'{path}: holds a {type(value).__name__}, not a list of rows.')
    wrong = next((number for number, row in enumerate(value, 1) if not isinstance(row, dict)), None)
    if wrong is not None:
        raise DataError(f'{path}:{wrong}: entry {wrong} of the list is a {type(value[wrong - 1]).__name__}, no record.')
    return TensorRows(path, value)


def _listed(value: Any) -> Any:
    whole = isinstance(value, Tensor) and not value.is_floating_point() and not value.is_complex()
    return value.tolist() if whole else value
