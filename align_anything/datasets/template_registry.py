"""Templates by name: built-in ones, and those in a user's own Python file."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

from align_anything.core.errors import DataError
from align_anything.core.registry import Registry
from align_anything.core.user_files import look_up
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
    return look_up(name, _TEMPLATES, _is_template)


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


def _is_template(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, BaseFormatter)
