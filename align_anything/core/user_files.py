"""Things of a user's own Python file, named `path/to/file.py:Name` beside the names of a registry."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from align_anything.core.errors import FOREIGN_FAULTS, AlignAnythingError
from align_anything.core.registry import USER_FILE, Registry, nearest

T = TypeVar('T')
BESIDE = ' It is imported alone, and not as part of a package: for files beside it, put its folder on PYTHONPATH.'

_found: dict[str, Path] = {}


def look_up(name: str, registry: Registry[T]) -> T:
    """Returns what the registry has under `name`, or the object `Name` of `path/to/file.py:Name`.

    `Name` is what the object is registered as, or what it is called in the file; `registry.is_one` tells which of the
    objects that the file defines are of the registry's kind. Raises the registry's error with the nearest name when
    there is none, and when the file cannot be imported.
    """
    path, separator, member = name.rpartition(':')
    if separator and path.endswith('.py'):
        return _from_file(path, member, registry)
    if name.endswith('.py'):
        raise registry.error(f"{registry.kind} '{name}' names a file but no {registry.kind} in it: write {name}:Name.")
    return registry.get(name)


def _from_file(path: str, member: str, registry: Registry[T]) -> T:
    kind = registry.kind
    registry.discover()  # so that the file, not one of ours, is told of a name that is taken
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        # Code of others may have gone to another folder since it was named first.
        file = _found.get(path, file)
    if not file.is_file():
        raise registry.error(f"{kind} '{path}:{member}': there is no file {file}.")
    try:
        module = _load(file)
    except AlignAnythingError:
        raise
    except FOREIGN_FAULTS as error:
        told = f"{kind} '{path}:{member}': the file {file} cannot be imported: {type(error).__name__}: {error}."
        raise registry.error(told + (BESIDE if issubclass(type(error), ImportError) else '')) from error
    _found[path] = file
    members = vars(module).items()
    own = {name: value for name, value in members if registry.is_one(value) and value.__module__ == module.__name__}
    registered = {name: value for name, value in registry.registered(module.__name__).items() if value in own.values()}
    found = {**own, **registered}
    if member not in found:
        known = ', '.join(sorted(found)) or 'none'
        raise registry.error(
            f"{file} has no {kind} '{member}'.{nearest(member, list(found))} {kind.capitalize()}s there: {known}."
        )
    return found[member]


@functools.cache
def _load(file: Path) -> ModuleType:
    """Returns the file as a module; it runs once, however many names of it are asked for."""
    digest = hashlib.sha256(str(file).encode()).hexdigest()[:12]
    spec = importlib.util.spec_from_file_location(f'{USER_FILE}{digest}', file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module.__name__]
        raise
    return module
