"""The options of a function or a class that settings name: its keyword parameters, in the types that it declares."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from pydantic import ConfigDict, ValidationError, create_model

from align_anything.core.errors import SettingsError
from align_anything.core.registry import nearest


def checked_options(
    what: str, function: Callable[..., Any], options: Mapping[str, Any], *, positional: bool = False
) -> dict[str, Any]:
    """Returns all options of a function or a class: those given, in the types that it declares, and its defaults.

    Args:
        what: it in words, such as `reward 'exact_match'`.
        function: its keyword-only parameters are options; with `positional` those that have no such mark too.
        options: those given; one without a default must be.

    Raises:
        SettingsError: unknown or missing options, or values of another type; names what the function takes.
    """
    kinds = {inspect.Parameter.KEYWORD_ONLY} | ({inspect.Parameter.POSITIONAL_OR_KEYWORD} if positional else set())
    try:
        hints = get_type_hints(function.__init__ if inspect.isclass(function) else function, include_extras=True)
    except NameError as error:
        raise SettingsError([f'{what}: {error} in the annotations of its parameters; import it']) from error
    known = {
        parameter.name: (
            hints.get(parameter.name, Any),
            ... if parameter.default is parameter.empty else parameter.default,
        )
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind in kinds
    }
    config = ConfigDict(extra='forbid', protected_namespaces=(), arbitrary_types_allowed=True)
    try:
        checked = create_model('Options', __config__=config, **known)(**options)
    except ValidationError as error:
        raise SettingsError([_problem(what, list(known), problem) for problem in error.errors()]) from error
    return {option: getattr(checked, option) for option in known}


def _problem(what: str, known: list[str], problem: Mapping[str, Any]) -> str:
    option = '.'.join(map(str, problem['loc']))
    takes = f'Its options: {", ".join(known) or "none"}.'
    if problem['type'] == 'extra_forbidden':
        return f"{what} has no option '{option}'.{nearest(option, known)} {takes}"
    if problem['type'] == 'missing':
        return f"{what} needs the option '{option}'. {takes}"
    return f"option '{option}' of {what} is {problem['input']!r}: {problem['msg']}. {takes}"
