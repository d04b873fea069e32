"""Rows in memory as sources of a run: lent under a name as long as a call lasts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align_anything.datasets import lent_rows

if TYPE_CHECKING:
    import datasets

    Rows = Sequence[Mapping[str, Any]] | datasets.Dataset | datasets.IterableDataset | datasets.DatasetDict
    Dataset = str | Path | Rows


def lend_rows(argument: str, source: Any, stack: ExitStack) -> Any:
    """Returns the names, and paths, of the sources; what is in memory is lent under its name until the stack ends.

    `argument` is what the name begins with, such as `train(dataset`.
    """
    if source is None or isinstance(source, (str, Path)):
        return source
    if not isinstance(source, (list, tuple)) or not source or isinstance(source[0], Mapping):
        return _lent(f'{argument})', source, stack)
    return [
        one if isinstance(one, (str, Path)) else _lent(f'{argument}[{number}])', one, stack)
        for number, one in enumerate(source)
    ]


def _lent(name: str, source: Any, stack: ExitStack) -> str:
    stack.enter_context(lent_rows.LENT.lend({name: lent_rows.held(name, source)}))
    return name
