"""What packages that others install add to this one: the entry points of a group, by name."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from align_anything.core.distributed import is_main
from align_anything.core.errors import FOREIGN_FAULTS, AlignAnythingError
from align_anything.core.logging import get_logger

logger = get_logger(__name__)

T = TypeVar('T')


def registered_twice(kind: str, name: str, first: str, second: str) -> str:
    """Returns the message for a name that two origins claim."""
    return f"{kind} '{name}' is registered twice: by {first} and by {second}. Rename one, or uninstall its package."


def usable(names: Iterable[str], get: Callable[[str], T]) -> dict[str, T]:
    """Returns what `get` gives for each of `names`. What it refuses is left out, and the log says so once."""
    found = {}
    for name in names:
        try:
            found[name] = get(name)
        except AlignAnythingError as error:
            _warn_once(str(error))
    return found


@functools.cache
def _warn_once(problem: str) -> None:
    if is_main():
        logger.warning('A plugin is left out:\n%s', problem)


class Plugins:
    """Entry points of one group. They are listed when a name is first asked for, and each is loaded when its own is.

    What is listed is the metadata of installed packages: a broken plugin stops the runs that use it, not all others.
    """

    def __init__(
        self,
        kind: str,
        group: str,
        error: Callable[[str], AlignAnythingError],
        wanted: str = 'an object',
        is_one: Callable[[Any], bool] = lambda value: True,
        fault: Callable[[str, Any], str] = lambda name, value: '',
    ) -> None:
        """Reads `group`, an empty one for none.

        `wanted` says in words what `is_one` asks of a loaded object, and `fault` what is wrong with one that is found
        under a name, an empty string for nothing.
        """
        self.kind = kind
        self.group = group
        self.error = error
        self.wanted = wanted
        self.is_one = is_one
        self.fault = fault
        self._loaded: dict[str, Any] = {}

    @functools.cached_property
    def _points(self) -> dict[str, EntryPoint]:
        found: dict[str, EntryPoint] = {}
        for point in entry_points(group=self.group) if self.group else ():
            if point.name in found:
                origins = _origin(found[point.name]), _origin(point)
                raise self.error(registered_twice(self.kind, point.name, *origins))
            found[point.name] = point
        return found

    def origin(self, name: str) -> str:
        """Returns where `name` comes from, in words: its entry point and the package that was installed."""
        return _origin(self._points[name])

    def load(self, name: str) -> Any:
        """Returns the object that the entry point `name` stands for; it is imported once.

        Raises:
            AlignAnythingError: as `error` makes it, when the import fails or gives something of another kind.
        """
        if name not in self._loaded:
            self._loaded[name] = self._import(self._points[name])
        return self._loaded[name]

    def _import(self, point: EntryPoint) -> Any:
        what = f"{self.kind} '{point.name}': {_origin(point)}"
        try:
            value = point.load()
        except FOREIGN_FAULTS as error:
            reason = f'{type(error).__name__}: {error}'
            raise self.error(f'{what} cannot be imported: {reason}. Repair or uninstall that package.') from error
        if not self.is_one(value):
            raise self.error(
                f'{what} gives {value!r}, but should give {self.wanted}. '
                f'Correct the entry point (group {self.group}) in that package, or uninstall it.'
            )
        fault = self.fault(point.name, value)
        if fault:
            raise self.error(f'{what} cannot be used: {fault}. Correct or uninstall that package.')
        return value

    def __contains__(self, name: object) -> bool:
        return name in self._points

    def __iter__(self) -> Iterator[str]:
        return iter(self._points)


def _origin(point: EntryPoint) -> str:
    return f"the entry point '{point.name} = {point.value}' of {point.dist.name} {point.dist.version}"
