"""A registry that refuses duplicates, suggests the nearest name, and finds what installed packages bring."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from align_anything.core.errors import AlignAnythingError
from align_anything.core.plugins import Plugins, registered_twice, usable

T = TypeVar('T')
USER_FILE = 'align_anything_user_file_'
"""How the names of modules begin that are users' own files."""


def nearest(name: str, known: list[str], cutoff: float = 0.6) -> str:
    """Returns ` Did you mean 'x'?` for the closest of `known` that is at least so much like `name`, else nothing."""
    lowered = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), list(lowered), n=1, cutoff=cutoff)
    return f" Did you mean '{lowered[close[0]]}'?" if close else ''


class Registry(Generic[T]):
    """Names to objects of one kind, for instance templates or algorithms.

    Objects are registered by modules when these are imported. The modules of `package` are, once, when a name is first
    asked for; and the entry points of `group` in installed packages are names as well (`core/plugins.py`).
    """

    def __init__(
        self,
        kind: str,
        error: Callable[[str], AlignAnythingError] = AlignAnythingError,
        *,
        package: str = '',
        group: str = '',
        wanted: str = 'an object',
        is_one: Callable[[Any], bool] = lambda value: True,
        fault: Callable[[str, Any], str] = lambda name, value: '',
    ) -> None:
        """Starts empty.

        Args:
            kind: what the objects are, for messages.
            error: makes the error to raise from its message.
            package: the package whose modules register the objects that this project brings.
            group: the group of entry points that adds others.
            wanted: what an object must be, in words.
            is_one: tells whether an object from elsewhere is that.
            fault: says what is wrong with a plugin's object of that name, an empty string for nothing.
        """
        self.kind = kind
        self.error = error
        self.package = package
        self.is_one = is_one
        self.plugins = Plugins(kind, group, error, wanted, is_one, fault)
        self._items: dict[str, T] = {}
        self._origins: dict[str, str] = {}
        self._of_files: dict[str, dict[str, T]] = {}
        self._discovered = False

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that files the object under `name`. Raises when another object holds the name.

        A user's own file may use a name that is taken: it is asked for as `file.py:name`, and the name alone stays with
        who had it first.
        """

        def decorate(item: T) -> T:
            if item.__module__.startswith(USER_FILE) and self._is_of_others(name, item.__module__):
                self._of_files.setdefault(item.__module__, {})[name] = item
            else:
                self._file(name, item, f'{item.__module__}.{item.__qualname__}')
            return item

        return decorate

    def _file(self, name: str, item: T, origin: str) -> None:
        if name in self._items and self._items[name] is not item:
            raise self.error(registered_twice(self.kind, name, self._origins[name], origin))
        self._items.setdefault(name, item)
        self._origins.setdefault(name, origin)

    def discover(self) -> None:
        """Imports the modules of `package`, once, and raises when an installed package has a name of theirs."""
        if self._discovered:
            return
        if self.package:
            for module in pkgutil.iter_modules(importlib.import_module(self.package).__path__):
                importlib.import_module(f'{self.package}.{module.name}')
        for name in self.plugins:
            if name in self._items and self._items[name].__module__.startswith(f'{self.package}.'):
                raise self.error(registered_twice(self.kind, name, self._origins[name], self.plugins.origin(name)))
        self._discovered = True

    def get(self, name: str) -> T:
        """Returns the object called `name`. Raises with the nearest name when there is none."""
        self.discover()
        if name in self.plugins:
            # A module that registers its object itself has filed it by now, or another's holds the name.
            self._file(name, self.plugins.load(name), self.plugins.origin(name))
        if name not in self._items:
            hint = nearest(name, self.names())
            raise self.error(f"unknown {self.kind} '{name}'.{hint} Known: {', '.join(self.names())}.")
        return self._items[name]

    def names(self) -> list[str]:
        """Returns all names, those of plugins that are not loaded yet among them."""
        self.discover()
        return sorted({*self._items, *self.plugins}, key=str.lower)

    def usable(self) -> dict[str, T]:
        """Returns every object by name; a plugin that cannot be used is left out, and the log says so once."""
        return usable(self, self.get)

    def registered(self, module: str) -> dict[str, T]:
        """Returns what modules that are imported by now have registered, by name, with the names `module` gave."""
        return {**self._items, **self._of_files.get(module, {})}

    def _is_of_others(self, name: str, module: str) -> bool:
        return name in self._items and self._items[name].__module__ != module

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())
