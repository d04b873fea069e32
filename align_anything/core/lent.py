"""Objects of this process that settings name, which hold names and numbers only, for as long as a run needs them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar('T')


class Lent(Generic[T]):
    """Objects by name. None is known but while `lend` lends it."""

    def __init__(self) -> None:
        self._held: dict[str, T] = {}

    @contextmanager
    def lend(self, objects: Mapping[str, T]) -> Iterator[None]:
        """Makes `objects` known until the block ends; they go before those of the same names that are lent already."""
        before = self._held
        self._held = {**before, **objects}
        try:
            yield
        finally:
            self._held = before

    def get(self, name: str) -> T | None:
        """Returns what is lent under `name`, None where nothing is."""
        return self._held.get(name)
