"""What a field's type admits: said in words for messages, and used to read texts typed by a person."""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from align_anything.configs.yaml_text import parse_yaml

_WORDS = {Any: 'any value', type(None): 'null', str: 'text', bool: 'true or false', int: 'integer', float: 'number'}
NULLS = ('null', 'none', '~')


def shape_of(annotation: Any) -> Shape:
    """Returns what `annotation` admits; the members of a union are looked at one by one."""
    found: dict[str, Any] = {}
    for member in _members(annotation):
        origin = get_origin(member)
        if member is Any:
            found['anything'] = True
        elif member is type(None):
            found['null'] = True
        elif member is str:
            found['text'] = True
        elif member in (bool, int, float):
            found['numbers'] = (*found.get('numbers', ()), member)
        elif origin is Literal:
            found['choices'] = (*found.get('choices', ()), *get_args(member))
        elif origin in (list, tuple):
            found['item'] = get_args(member)[0]
        elif origin is dict:
            found['entry'] = get_args(member)[1]
        else:
            raise TypeError(f'settings cannot have the type {member!r}')
    return Shape(**found)


def describe_type(annotation: Any) -> str:
    """Returns the type in words, for instance `integer or null`."""
    words = []
    for member in _members(annotation):
        origin, arguments = get_origin(member), get_args(member)
        if origin is Literal:
            words.extend(f"'{choice}'" for choice in arguments)
        elif origin is list:
            words.append(f'list of {_inner(arguments[0])}')
        elif origin is tuple:
            words.append(f'list of {len(arguments)} ({describe_type(arguments[0])})')
        elif origin is dict:
            words.append(f'mapping of name to {_inner(arguments[1])}')
        else:
            words.append(_WORDS[member])
    return ' or '.join(words)


def parse_texts(texts: Sequence[str], annotation: Any) -> Any:
    """Reads what a person typed after a key.

    Text fields keep the words as they stand, so that `007`, `train[:10%]` and `a: b` survive; everything else is
    YAML. Several words make a list; a list that the shell split at its blanks is put together again.
    Raises ValueError for broken YAML.
    """
    shape = shape_of(annotation)
    if len(texts) > 1:
        if texts[0].startswith('[') and texts[-1].endswith(']'):
            return parse_yaml(' '.join(texts))
        return [parse_texts([text], shape.item) for text in texts]
    text = texts[0].strip()
    if shape.anything:
        return parse_yaml(text)
    if shape.null and text.lower() in NULLS:
        return None
    if (shape.takes_list and text[0] == '[') or (shape.takes_mapping and text[0] == '{'):
        return parse_yaml(text)
    if text in shape.choices:
        return text
    if shape.numbers:
        return parse_yaml(text)
    if shape.text:
        return texts[0]
    if shape.takes_list:
        return [text] if shape_of(shape.item).text else parse_yaml(f'[{text}]')
    return text if shape.choices else parse_yaml(text)


def _inner(annotation: Any) -> str:
    words = describe_type(annotation)
    return f'({words})' if ' or ' in words else words


def _members(annotation: Any) -> list[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [inner for member in get_args(annotation) for inner in _members(member)]
    return [annotation]


@dataclass(frozen=True)
class Shape:
    """What a type admits: null, free text, numbers and truth values, fixed choices, list items, mapping entries."""

    anything: bool = False
    null: bool = False
    text: bool = False
    numbers: tuple[type, ...] = ()
    choices: tuple[str, ...] = ()
    item: Any = None
    entry: Any = None

    @property
    def takes_list(self) -> bool:
        return self.item is not None

    @property
    def takes_mapping(self) -> bool:
        return self.entry is not None or self.anything
