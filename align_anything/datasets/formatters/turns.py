"""Turns of a conversation as formatters write them."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from align_anything.core.errors import SampleError
from align_anything.core.types import ACTION, MEDIA_KINDS, MediaKind
from align_anything.datasets.formatters.columns import Row, texts
from align_anything.datasets.formatters.columns import filled as filled_in
from align_anything.datasets.turn_keys import MEDIA_KEYS, filled, listed, several, source_keys

Turns = list[dict[str, Any]]
Meta = dict[str, Any]
Sample = tuple[Turns, Meta]
PairSample = tuple[Turns, Turns, Meta]


def user(text: str) -> dict[str, Any]:
    """Returns a user turn of text."""
    return {'role': 'user', 'content': text}


def assistant(text: str) -> dict[str, Any]:
    """Returns an assistant turn of text."""
    return {'role': 'assistant', 'content': text}


def user_with(kind: MediaKind, media: Any, text: str) -> dict[str, Any]:
    """Returns a user turn that shows `media`, one of a kind or a list, before `text`.

    Text that says itself where its media stand (`<image>`, `<video>`, `<audio>`) keeps its own order.
    """
    if f'<{kind}>' in text:
        return user(text)
    placeholders = [{'type': kind} for _ in several(media)]
    return {'role': 'user', 'content': [*placeholders, {'type': 'text', 'text': text}]}


def request_for(answer: str, requests: Sequence[str]) -> str:
    """Returns one of several ways to ask for an answer: always the same one, in every worker and resumed run."""
    return requests[zlib.crc32(answer.encode()) % len(requests)]


def shown(kind: MediaKind, media: Any) -> list[dict[str, Any]]:
    """Returns media, one of a kind or a list, as parts that bring them along."""
    return [{'type': kind, kind: source} for source in listed(media)]


def with_own(role: str, text: str, kind: MediaKind, media: Any) -> dict[str, Any]:
    """Returns a turn of text and media of its own, either of which may be none: `''`, None or an empty list.

    Media stand where the text says (`<image>`, `<video>`, `<audio>`); else those of an answer after its text, others
    before it. Raises `SampleError` when there is neither.
    """
    parts = [] if media is None else shown(kind, media)
    if not parts and not text:
        raise SampleError(f'the {role} turn has neither a text nor {kind} media.')
    if not parts:
        return {'role': role, 'content': text}
    if f'<{kind}>' in text:
        return {'role': role, 'content': text, f'{kind}s': [part[kind] for part in parts]}
    words = [{'type': 'text', 'text': text}] if text else []
    return {'role': role, 'content': [*words, *parts] if role == 'assistant' else [*parts, *words]}


def pair(prompt: Turns, better: str, worse: str, meta: Meta) -> PairSample:
    """Returns what a preference hook returns: the prompt with either answer, and `meta` with both answers."""
    answers = {'better_response': better, 'worse_response': worse}
    return [*prompt, assistant(better)], [*prompt, assistant(worse)], {**meta, **answers}


def answered_by_medium(prompt: Turns, meta: Meta, prefix: str = '') -> tuple[Turns, Meta]:
    """Returns a prompt answered by the one medium that stands in `meta` behind `prefix`, and the rest of `meta`.

    Samples of audio have their rate in `meta['sampling_rate']`. Raises SampleError for no medium, or several.
    """
    keys = [f'{prefix}{key}' for key in MEDIA_KEYS if meta.get(f'{prefix}{key}') is not None]
    parts = [part for key in keys for part in shown(MEDIA_KEYS[key.removeprefix(prefix)], meta[key])]
    if len(parts) != 1:
        wanted = ' or '.join(f"'{prefix}{key}'" for key in MEDIA_KINDS)
        raise SampleError(f'meta should hold one medium, as {wanted}, but holds {len(parts) or "none"}.')
    part, rate = parts[0], meta.get('sampling_rate')
    if rate is not None and part['type'] == 'audio' and not isinstance(part['audio'], (str, bytes, Mapping)):
        part = {**part, 'audio': {'array': part['audio'], 'sampling_rate': rate}}
    rest = {key: value for key, value in meta.items() if key not in keys}
    return [*prompt, {'role': 'assistant', 'content': [part]}], rest


def with_its_media(turn: dict[str, Any], meta: Meta) -> tuple[dict[str, Any], Meta]:
    """Returns the last turn of a conversation with its media taken out of `meta` as its own, and the rest of `meta`.

    They are those that its placeholders name by their `index`, else the last ones, one for each placeholder.
    """
    taken, rest = dict(turn), dict(meta)
    for key, kind in MEDIA_KEYS.items():
        waiting = [] if meta.get(key) is None else listed(meta[key])
        named = [part['index'] for part in _bare(turn['content'], kind) if 'index' in part]
        count = _placeholders(turn['content'], kind)
        if not count or {kind, f'{kind}s'} & filled(turn).keys():
            continue
        if named == [number for number in named if number in range(len(waiting))] and len(named) == count:
            taken['content'] = [_filled_by(part, kind, waiting) for part in taken['content']]
            rest[key] = [source for number, source in enumerate(waiting) if number not in named]
        elif not named and len(waiting) >= count:
            taken[f'{kind}s'], rest[key] = waiting[-count:], waiting[:-count]
    return taken, rest


OUTCOMES = ('seed', 'success', 'reward', 'rewards', 'cost', 'costs', 'environment', 'dimensions', 'cameras')
"""Columns of a recorded episode that say how it began and what came of it, and ride along in `meta`."""


def outcomes_of(row: Row) -> dict[str, Any]:
    """Returns those of `OUTCOMES` that the row has. Raises `SampleError` for names that are no list of texts."""
    found = {name: row[name] for name in OUTCOMES if filled_in(row, name)}
    return {**found, **{name: texts(row, name) for name in ('dimensions', 'cameras') if name in found}}


def acts(turn: Mapping[str, Any]) -> bool:
    """Tells whether a turn does something."""
    content = turn.get('content')
    parts = content if isinstance(content, (list, tuple)) else []
    return any(isinstance(part, Mapping) and part.get('type') == ACTION for part in parts)


def says_only_text(turn: dict[str, Any]) -> bool:
    """Tells whether a turn has no media of its own."""
    content = turn['content']
    parts = content if isinstance(content, (list, tuple)) else []
    media = [part for part in parts if isinstance(part, Mapping) and part.get('type') != 'text']
    return not media and not MEDIA_KEYS.keys() & filled(turn).keys()


def text_said(turn: Mapping[str, Any]) -> Any:
    """The text of a turn that `says_only_text`, also where it came in parts."""
    content = turn['content']
    if not isinstance(content, (list, tuple)):
        return content
    return ''.join(part.get('text') or '' if isinstance(part, Mapping) else str(part) for part in content)


def _filled_by(part: Any, kind: MediaKind, media: Sequence[Any]) -> Any:
    """A placeholder that names its medium with that medium, any other part as it is."""
    if not _bare([part], kind):
        return part
    return {**{key: value for key, value in part.items() if key != 'index'}, kind: media[part['index']]}


def _placeholders(content: Any, kind: MediaKind) -> int:
    """The number of placeholders of a kind in a content."""
    if isinstance(content, str):
        return content.count(f'<{kind}>')
    parts = content if isinstance(content, (list, tuple)) else []
    texts = [part.get('text') if isinstance(part, Mapping) else part for part in parts]
    written = sum(text.count(f'<{kind}>') for text in texts if isinstance(text, str))
    return written + len(_bare(content, kind))


def _bare(content: Any, kind: MediaKind) -> list[dict[str, Any]]:
    """The parts of a kind that bring no medium, without their keys of nothing."""
    parts = content if isinstance(content, (list, tuple)) else []
    told = [filled(part) for part in parts if isinstance(part, Mapping)]
    return [part for part in told if part.get('type') == kind and not part.keys() & set(source_keys(kind))]
