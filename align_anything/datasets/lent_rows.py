"""Rows that a caller has in memory: lists of dicts, and datasets of the library `datasets`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from align_anything.core.errors import DataError
from align_anything.core.lent import Lent
from align_anything.datasets.rows import InOrder, Row, Rows, RowStream, TableRows, TableStream

if TYPE_CHECKING:
    import datasets

    Table = datasets.Dataset | datasets.IterableDataset

Held = Mapping[str, Rows | RowStream]
"""The splits of a source: rows with random access, or a stream."""

LENT: Lent[Held] = Lent()
"""The sources of this process by the names that `train_datasets` and `eval_datasets` have for them."""


class ListRows:
    """Rows of a list, media among their values. What reads a row may change the dict and the lists in it."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], label: str) -> None:
        self.label, self._rows = label, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return {name: _own(value) for name, value in self._rows[index].items()}

    def row_name(self, index: int) -> str:
        return f'{self.label}:{index + 1}'


def held(name: str, source: Sequence[Mapping[str, Any]] | Mapping[str, Table] | Table) -> Held:
    """Returns the splits of a source in memory that goes by `name`.

    Takes a list of dicts, a `datasets.Dataset`, an `IterableDataset`, or a `DatasetDict` of either. Raises DataError
    for anything else, and for a list with an entry that is no dict.
    """
    if isinstance(source, Mapping):
        return {str(split): _table(f'{name}[{split}]', table) for split, table in source.items()}
    if isinstance(source, (list, tuple)):
        wrong = next((number for number, row in enumerate(source, 1) if not isinstance(row, Mapping)), None)
        if wrong is not None:
            raise DataError(
                f'{name}:{wrong}: entry {wrong} of the list is a {type(source[wrong - 1]).__name__}, no dict '
                "{'column': value, …}. Give every row as a dict."
            )
        return {'train': ListRows(source, name)}
    return {'train': _table(name, source)}


def as_stream(rows: Rows | RowStream) -> RowStream:
    """Returns the rows to be read in order."""
    return rows if isinstance(rows, TableStream) else InOrder(rows)


def as_rows(source: str, rows: Rows | RowStream) -> Rows:
    """Returns the rows where they have random access. Raises DataError for a stream."""
    if isinstance(rows, TableStream):
        raise DataError(f'{source} is an IterableDataset, which is read in order: set data_cfgs.streaming: True.')
    return rows


def _table(name: str, source: Any) -> Rows | RowStream:
    import datasets

    if isinstance(source, datasets.Dataset):
        return TableRows(source, name)
    if isinstance(source, datasets.IterableDataset):
        return TableStream(source, name)
    raise DataError(
        f'{name} is a {type(source).__name__}: give a path, a list of dicts, or a Dataset of the library datasets.'
    )


def _own(value: Any) -> Any:
    """The value with lists and dicts of its own; media in them are handed on as they are."""
    if isinstance(value, dict):
        return {name: _own(item) for name, item in value.items()}
    return [_own(item) for item in value] if isinstance(value, list) and not _numbers(value) else value


def _numbers(value: list[Any]) -> bool:
    return bool(value) and isinstance(value[0], (int, float))
