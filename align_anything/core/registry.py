"""A registry that refuses duplicates and suggests the nearest name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from align_anything.core.errors import AlignAnythingError

T = TypeVar('T')


def nearest(name: str, known: list[str]) -> str:
    """Returns ` Did you mean 'x'?` for the closest of `known`, or an empty string."""
    lowered = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), list(lowered), n=1, cutoff=0.6)
    return f" Did you mean '{lowered[close[0]]}'?" if close else ''


class Registry(Generic[T]):
    """Names to objects of one kind, for instance templates or algorithms."""

    def __init__(self, kind: str, error: type[AlignAnythingError] = AlignAnythingError) -> None:
        self.kind = kind
        self.error = error
        self._items: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that files the object under `name`. Raises when another object holds the name."""

        def decorate(item: T) -> T:
            holder = self._items.get(name)
            if holder is not None and holder is not item:
                raise self.error(f"{self.kind} '{name}' is registered twice: {holder!r} and {item!r}. Rename one.")
            self._items[name] = item
            return item

        return decorate

    def get(self, name: str) -> T:
        """Returns the object called `name`. Raises with the nearest name when there is none."""
        if name not in self._items:
            hint = nearest(name, list(self._items))
            raise self.error(f"unknown {self.kind} '{name}'.{hint} Known: {', '.join(self.names())}.")
        return self._items[name]

    def names(self) -> list[str]:
        return sorted(self._items, key=str.lower)

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())
