"""What a turn may hold beside `role` and `content`: the keys that are heeded, in one place, and no others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from align_anything.core import thoughts
from align_anything.core.errors import SampleError
from align_anything.core.types import MEDIA_KINDS, MediaKind
from align_anything.datasets.media.sources import is_vector

MEDIA_KEYS: dict[str, MediaKind] = {key: kind for kind in MEDIA_KINDS for key in (kind, f'{kind}s')}
WEIGHTS = ('weight', 'loss', 'train')
"""How much the tokens of a turn count, a number or a truth value: 0 makes it context. Several are multiplied."""
CALLS = ('tool_calls', 'function_call')
"""Names of the calls of a turn, of which the first is ours."""
KNOWN = ('role', 'content', 'name', 'tool_call_id', 'prefix', 'state', *CALLS, *thoughts.KEYS, *WEIGHTS, *MEDIA_KEYS)


def filled(turn: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a turn says: its keys without those of nothing."""
    return {key: value for key, value in turn.items() if not is_nothing(value)}


def beside(where: str, turn: Mapping[str, Any], *used: str) -> dict[str, Any]:
    """Returns what a turn holds beside the keys that its template has used as role and content.

    Raises SampleError when that is a role or a content once more.
    """
    rest = {key: value for key, value in filled(turn).items() if key not in used}
    twice = [key for key in ('role', 'content') if key in rest]
    if twice:
        raise SampleError(f'{where} has {" and ".join(map(repr, twice))} beside {" and ".join(map(repr, used))}.')
    return rest


def refuse_unheeded(where: str, turn: Mapping[str, Any]) -> None:
    """Raises SampleError for a key of the turn that nothing reads, so that what it says would be lost."""
    unknown = [key for key in filled(turn) if key not in KNOWN]
    if unknown:
        raise SampleError(
            f'{where} has {", ".join(map(repr, unknown))}, which nothing reads. Keys of a turn are: '
            f'{", ".join(KNOWN)}. Take it out of the rows, or write a template that leaves it out.'
        )


def weight_of(where: str, turn: Mapping[str, Any]) -> float:
    """Returns what the loss weights of the turn's tokens are multiplied by, 1 where nothing is said.

    Raises SampleError for what is neither a truth value nor a finite number, zero or more.
    """
    weight = 1.0
    for key in (key for key in WEIGHTS if key in turn):
        value = turn[key]
        if not isinstance(value, (bool, int, float)) or not 0 <= value < math.inf:
            raise SampleError(f'{where} has {key} {value!r}; it should be true, false, or a number of 0 or more.')
        weight *= float(value)
    return weight


def media_of_turn(where: str, turn: Mapping[str, Any]) -> dict[MediaKind, list[Any]]:
    """Returns the media that the turn itself brings, by kind. Raises SampleError for a kind under two keys."""
    found: dict[MediaKind, list[Any]] = {}
    for key, kind in MEDIA_KEYS.items():
        if key in turn:
            if kind in found:
                raise SampleError(f"{where} holds both '{kind}' and '{kind}s'; only one may be given.")
            found[kind] = listed(turn[key])
    return found


def source_keys(kind: MediaKind) -> tuple[str, ...]:
    """Returns the keys under which a part may bring its medium; the first one given counts."""
    return ('base64', kind, f'{kind}_url', 'path', 'url')


def listed(sources: Any) -> list[Any]:
    """Returns one medium or several as a list, without records that hold nothing."""
    return [source for source in several(sources) if not is_empty_record(source)]


def several(sources: Any) -> list[Any]:
    """Returns one medium or several as a list; a list of numbers is one medium, an embedding."""
    return list(sources) if isinstance(sources, (list, tuple)) and not is_vector(sources) else [sources]


def is_empty_record(source: Any) -> bool:
    """Whether a medium is the record of a feature with null under all keys, as tables write one that is absent."""
    return (
        isinstance(source, Mapping)
        and bool(source)
        and source.keys() <= {'bytes', 'path', 'embedding'}
        and not any(value is not None for value in source.values())
    )


def is_nothing(value: Any) -> bool:
    """Whether a value says nothing: null, an empty text, list or record."""
    return value is None or (isinstance(value, (str, list, tuple, dict)) and not value) or is_empty_record(value)
