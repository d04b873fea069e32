"""Turns of a conversation as formatters write them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

from align_anything.core.types import MediaKind
from align_anything.datasets.turn_keys import several

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


def pair(prompt: Turns, better: str, worse: str, meta: Meta) -> PairSample:
    """Returns what a preference hook returns: the prompt with either answer, and `meta` with both answers."""
    answers = {'better_response': better, 'worse_response': worse}
    return [*prompt, assistant(better)], [*prompt, assistant(worse)], {**meta, **answers}
