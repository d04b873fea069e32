"""The normal form of tools and of calls to them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from align_anything.core.errors import SampleError

CALL_KEYS = ('id', 'type', 'index', 'function', 'name', 'arguments')


def tools_of(value: Any) -> list[dict[str, Any]]:
    """Returns descriptions of tools as chat templates take them, `{'type': 'function', 'function': {…}}` each.

    Args:
        value: a list of them or one, or a JSON text of that; the record of a function alone is taken too.

    Raises:
        SampleError: it is none of these, or one has no name.
    """
    parsed = _parsed(value, "'tools'")
    if parsed in (None, [], {}):
        return []
    tools = []
    for number, tool in enumerate(parsed if isinstance(parsed, list) else [parsed]):
        record = _parsed(tool, f'tool {number}')
        function = record.get('function', record) if isinstance(record, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get('name'), str):
            raise SampleError(f"tool {number} in 'tools' is no record of a function with a 'name': {str(tool)[:80]}.")
        tools.append(dict(record) if 'function' in record else {'type': 'function', 'function': dict(record)})
    return tools


def calls_of(where: str, value: Any) -> list[dict[str, Any]]:
    """Returns the tool calls of an answer, arguments as a dict: `{'type': 'function', 'function': {…}}`, and the id.

    Args:
        where: the turn, for messages.
        value: a list of calls or one, or a JSON text of that; `{'name', 'arguments'}` alone is taken too.

    Raises:
        SampleError: it is none of these, or the arguments are no object.
    """
    parsed = _parsed(value, f"'tool_calls' of {where}")
    if parsed in (None, [], {}):
        return []
    calls = []
    for number, call in enumerate(parsed if isinstance(parsed, list) else [parsed]):
        function = call.get('function') or call if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get('name'), str):
            raise SampleError(f"tool call {number} of {where} is no record with a 'name': {str(call)[:80]}.")
        unknown = sorted(str(key) for key, given in call.items() if given is not None and key not in CALL_KEYS)
        if unknown:
            raise SampleError(f'tool call {number} of {where} has {", ".join(unknown)}, which means nothing here.')
        given = _parsed(function.get('arguments'), f'the arguments of tool call {number} of {where}')
        arguments = {} if given is None else given
        if not isinstance(arguments, Mapping):
            raise SampleError(
                f'the arguments of tool call {number} of {where} are no object, nor the JSON text of one: '
                f'{str(arguments)[:80]}.'
            )
        name = {'id': str(call['id'])} if call.get('id') is not None else {}
        record = {'name': function['name'], 'arguments': dict(arguments)}
        calls.append({**name, 'type': 'function', 'function': record})
    return calls


def _parsed(value: Any, what: str) -> Any:
    """The value of a JSON text; what is no text is returned as it is."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return json.loads(value)
    except ValueError as error:
        raise SampleError(f'{what} should be JSON but is not ({error}): {value[:80]}') from error
