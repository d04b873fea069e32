"""Templates by name: built-in ones, and those in a user's own Python file."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from align_anything.core.errors import AlignAnythingError, DataError
from align_anything.core.registry import Registry, nearest
from align_anything.datasets import formatters
from align_anything.datasets.formatters.base import BaseFormatter

Template = type[BaseFormatter]
_TEMPLATES: Registry[Template] = Registry('template', DataError)


def register_template(name: str) -> Callable[[Template], Template]:
    """Class decorator that files a formatter under `name`.

    Raises `DataError` when another class holds the name, or when the class is no `BaseFormatter`.
    """

    def decorate(template: Template) -> Template:
        if not issubclass(template, BaseFormatter):
            raise DataError(f"template '{name}': {template.__name__} must derive from BaseFormatter.")
        return _TEMPLATES.register(name)(template)

    return decorate


def get_template(name: str) -> Template:
    """Returns the formatter class called `name`, or the class `Name` of `path/to/file.py:Name`.

    Raises `DataError` with the nearest name when there is none, and when the file cannot be imported.
    """
    discover()
    path, separator, member = name.rpartition(':')
    if separator and path.endswith('.py'):
        return _from_file(path, member)
    if name.endswith('.py'):
        raise DataError(f"template '{name}' names a file but no formatter in it: write {name}:Name.")
    return _TEMPLATES.get(name)


def make_formatter(name: str, options: Mapping[str, Any] | None = None) -> BaseFormatter:
    """Returns an instance of the template called `name`, made with its options (the template kwargs).

    The instance can be pickled, also when its class comes from a user's file. Raises `DataError` for an unknown
    template or option.
    """
    template = get_template(name)
    given = dict(options or {})
    try:
        formatter = template(**given)
    except TypeError as error:
        raise DataError(f"template '{name}' does not take the options {sorted(given)}: {error}.") from error
    # An own constructor need not pass these on, and errors and worker processes rely on them.
    formatter._spec, formatter._given = name, given
    return formatter


def template_names() -> list[str]:
    """Returns the names of all registered templates."""
    discover()
    return _TEMPLATES.names()


def templates_with(hook: str) -> list[str]:
    """Returns the names of the templates that have `hook`, for instance `format_preference_sample`."""
    return [name for name in template_names() if hook in _TEMPLATES.get(name).hooks()]


@functools.cache
def discover() -> None:
    """Imports every module of `formatters/`, once, so that their templates are registered."""
    for module in pkgutil.iter_modules(formatters.__path__):
        importlib.import_module(f'{formatters.__name__}.{module.name}')


def _from_file(path: str, member: str) -> Template:
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise DataError(f"template '{path}:{member}': there is no file {file}.")
    module = _load_module(file)
    classes = {
        name: value
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, BaseFormatter) and value.__module__ == module.__name__
    }
    registered = {name: _TEMPLATES.get(name) for name in _TEMPLATES if _TEMPLATES.get(name) in classes.values()}
    found = {**classes, **registered}
    if member not in found:
        known = ', '.join(sorted(found)) or 'none'
        raise DataError(f"{file} has no formatter '{member}'.{nearest(member, list(found))} Formatters there: {known}.")
    return found[member]


@functools.cache
def _load_module(file: Path) -> ModuleType:
    digest = hashlib.sha256(str(file).encode()).hexdigest()[:12]
    spec = importlib.util.spec_from_file_location(f'align_anything_user_template_{digest}', file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module.__name__]
        if isinstance(error, AlignAnythingError):
            raise
        raise DataError(f'the template file {file} cannot be imported: {type(error).__name__}: {error}.') from error
    return module
