"""Python functions as the tools of an environment: their schemas, calls of them, and what comes back."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from align_anything.core.errors import FOREIGN_FAULTS, WorldError
from align_anything.core.registry import nearest
from align_anything.core.types import Message
from align_anything.environments.base import Call, Environment, Observation, Said, Step

Tool = Callable[..., Any]
ARGUMENT = re.compile(r'^\s*(\w+)\s*(?:\([^)]*\))?:\s*(.*)$')


class ToolFailed(Exception):
    """Raised by a tool that has failed: it holds what the policy is told, word for word."""


class FunctionTools(Environment):
    """Functions that the policy may call, as often as it likes; an answer without a call ends the episode.

    An error is no failure: it is shown to the policy, which may mend its call, also one that cannot be read.
    A class of your own derives from this one, passes its functions on, and may say what an answer is worth in `judged`,
    with `rewards = True`.

    Args:
        functions: what may be called, by their names; the first lines of their docstrings say what for.

    Raises:
        WorldError: two of the same name, one that has none or is async, or one whose parameters no call can give.
    """

    rewards = False

    def __init__(self, functions: Sequence[Tool]) -> None:
        self._functions = {function.__name__: function for function in functions}
        if len(self._functions) < len(functions):
            raise WorldError('two of the functions that are tools have the same name: rename one.')
        self._arguments = {name: _arguments_of(function) for name, function in self._functions.items()}
        self.tools = [schema_of(function) for function in functions]

    def judged(self, answer: str) -> tuple[float | None, Mapping[str, Any]]:
        """Returns the reward of an answer, None for none, and what else is to be told of it."""
        return None, {}

    def step(self, said: Said) -> Step:
        """Runs the calls in order; without any the episode is over."""
        if said.problem:
            told = f'Error: the call cannot be read: {said.problem}. Nothing was called.'
            return Step(Observation(told), info={'tool_errors': 1})
        if not said.calls:
            reward, info = self.judged(said.text)
            return Step(reward=reward, done=True, info=info)
        results = [self._run(call) for call in said.calls]
        messages = [_result(call, text) for call, (text, _) in zip(said.calls, results, strict=True)]
        return Step(Observation(messages), info={'tool_errors': sum(failed for _, failed in results)})

    def _run(self, call: Call) -> tuple[str, bool]:
        """What a call returns as text, and whether that is an error."""
        if call.name not in self._functions:
            known = ', '.join(self._functions)
            return f'Error: no tool {call.name!r}.{nearest(call.name, list(self._functions))} Tools: {known}.', True
        try:
            given = self._arguments[call.name](**call.arguments)
        except (ValidationError, TypeError) as error:
            return f'Error: {_told(error)}', True
        try:
            found = self._functions[call.name](**{name: getattr(given, name) for name in type(given).model_fields})
            told = found if isinstance(found, str) else json.dumps(found, ensure_ascii=False, default=str)
        except ToolFailed as error:
            return str(error), True
        except FOREIGN_FAULTS as error:
            return f'Error: {type(error).__name__}: {error}', True
        # No tokenizer takes half of a pair of UTF-16.
        return told.encode('utf-8', 'replace').decode('utf-8'), False


def schema_of(function: Tool) -> dict[str, Any]:
    """Returns the JSON schema of a function as chat templates take it, by its signature, its types and its docstring.

    Arguments are described as Google's style has it: `Args:`, and `name: what it is` on each line.
    """
    purpose, described = _documented(function)
    schema = _arguments_of(function).model_json_schema()
    properties = {
        name: {
            **{key: value for key, value in own.items() if key != 'title'},
            **({'description': described[name]} if name in described else {}),
        }
        for name, own in schema.get('properties', {}).items()
    }
    parameters = {'type': 'object', 'properties': properties, 'required': schema.get('required', [])}
    if '$defs' in schema:
        parameters['$defs'] = schema['$defs']
    return {
        'type': 'function',
        'function': {'name': function.__name__, 'description': purpose, 'parameters': parameters},
    }


def _arguments_of(function: Tool) -> type[BaseModel]:
    if not function.__name__.isidentifier():
        raise WorldError(f"a tool is called by its name, which '{function.__name__}' is none of: write a function.")
    if inspect.iscoroutinefunction(function):
        raise WorldError(f'{function.__name__} is async, and nobody awaits a tool: write a plain function.')
    hints, fields = get_type_hints(function, include_extras=True), {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise WorldError(f'{function.__name__}({parameter}): a call of a tool names all of its arguments.')
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[parameter.name] = (hints.get(parameter.name, Any), default)
    config = ConfigDict(extra='forbid', protected_namespaces=(), coerce_numbers_to_str=True)
    return create_model(function.__name__, __config__=config, **fields)


def _documented(function: Tool) -> tuple[str, dict[str, str]]:
    """What a docstring says of a function, and of each argument."""
    purpose, _, rest = inspect.cleandoc(function.__doc__ or '').partition('\nArgs:')
    described: dict[str, str] = {}
    for line in rest.partition('\n\n')[0].splitlines():
        found = ARGUMENT.match(line)
        if found:
            described[found[1]] = found[2].strip()
        elif described and line.strip():
            last = next(reversed(described))
            described[last] = f'{described[last]} {line.strip()}'
    return ' '.join(purpose.partition('\nReturns:')[0].split()), described


def _result(call: Call, text: str) -> Message:
    return {'role': 'tool', 'name': call.name, 'content': text}


def _told(error: ValidationError | TypeError) -> str:
    if isinstance(error, TypeError):
        return str(error)
    return '; '.join(f'{".".join(map(str, item["loc"]))}: {item["msg"]}' for item in error.errors())
