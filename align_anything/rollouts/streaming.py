"""What responses say while they are generated: pieces of text, and media once they are whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from align_anything.core.types import CodedMedia, Piece, Response
from align_anything.models.family import FamilySpec
from align_anything.rollouts.base import Sampling, Tell

Wanted = tuple[int, int]
"""The number of an Example, and that of the response to it."""
HALF = '\ufffd'
"""What stands at the end of a text whose last character is not whole."""


class Streams:
    """Tells what the rows of one call of `generate()` say.

    Args:
        spec: the family of the model.
        sampling: how they are sampled.
        call: which response each row is.
        tell: who is told.
    """

    def __init__(self, spec: FamilySpec, sampling: Sampling, call: Sequence[Wanted], tell: Tell) -> None:
        self._call, self._tell = call, tell
        self._rows = [_Growing(spec, sampling) for _ in call]

    def grown(self, row: int, ids: Sequence[int]) -> bool:
        """Tells what is new of a row that has generated `ids`; returns whether that is enough of it."""
        if row >= len(self._rows):
            return False  # those behind unconditional prompts say the same
        return any([self._tell(*self._call[row], part) for part in self._rows[row].grown(ids)])

    def finish(self, responses: Sequence[Response]) -> None:
        """Tells what is left of each row, given the whole responses."""
        for one, row, response in zip(self._call, self._rows, responses, strict=True):
            for part in row.rest(response.parts):
                self._tell(*one, part)


class _Growing:
    """One response that grows."""

    def __init__(self, spec: FamilySpec, sampling: Sampling) -> None:
        self._spec = spec
        self._silent = {*spec.stop_token_ids}
        self._stop = () if sampling.include_stop_str_in_output else sampling.stop
        self._ended = False
        # The context that text is decoded in, up to what was said, and the first id of the present stretch.
        self._context = self._said = self._start = 0
        self._held = ''
        self._parts: list[dict[str, Any]] = []

    def grown(self, ids: Sequence[int]) -> list[dict[str, Any]]:
        """Returns what is new."""
        if self._ended or ids[-1] in self._silent:
            self._ended = True  # what ends a response says nothing; `rest` knows whether it did
            return []
        codes = self._spec.codes
        if codes is not None and codes.further:
            return []
        if codes is None or not any(codes.kind_of(token) for token in ids[self._start :]):
            return self._worded(ids)
        if codes.kind_of(ids[-1]) is not None or any(ids[-1] == own.row_end for own in codes.kinds.values()):
            return []
        return self._with_medium(ids)

    def rest(self, parts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Returns what is left to say, given all parts of the response."""
        left = []
        for number, part in enumerate(parts):
            told = self._parts[number] if number < len(self._parts) else None
            if told is None:
                left.append(part)
            elif part['type'] == 'text' and len(part['text']) > len(told['text']):
                left.append({'type': 'text', 'text': part['text'][len(told['text']) :]})
        return left

    def _with_medium(self, ids: Sequence[int]) -> list[dict[str, Any]]:
        """What is new once text follows codes: the medium that these may be."""
        own = torch.tensor(ids[self._start :])
        parts = self._spec.decode(Piece(own, torch.ones(len(own))))
        if not any(type(part.get(part['type'])) is CodedMedia for part in parts):
            return []
        self._start = self._context = self._said = len(ids)
        before, *behind = parts if parts[0]['type'] == 'text' else [None, *parts]
        fresh = [] if before is None else self._text(before['text'][len(self._last_text()) :])
        self._parts += behind
        return [*fresh, *behind]

    def _worded(self, ids: Sequence[int]) -> list[dict[str, Any]]:
        if self._openings(ids):
            return []
        before = self._spec.text_of(ids[self._context : self._said])
        text = self._spec.text_of(ids[self._context :])
        if text.endswith(HALF) or len(text) <= len(before):
            return []
        self._context, self._said = self._said, len(ids)
        return self._text(self._released(text[len(before) :]))

    def _openings(self, ids: Sequence[int]) -> bool:
        """Whether ids that were not said belong to the opening of a medium, which says nothing."""
        codes = self._spec.codes
        if codes is None:
            return False
        begins = {own.opening[0] for own in codes.kinds.values() if own.opening}
        return any(token in begins for token in ids[self._said :])

    def _released(self, text: str) -> str:
        """The text that cannot be the beginning of a stop string any more."""
        if not self._stop:
            return text
        text, self._held = self._held + text, ''
        for string in self._stop:
            if string in text:
                self._ended = True
                text = text[: text.find(string)]
        longest = max(map(len, self._stop))
        for length in range(min(longest - 1, len(text)), 0, -1):
            if not self._ended and any(string.startswith(text[-length:]) for string in self._stop):
                text, self._held = text[:-length], text[-length:]
                break
        return text

    def _last_text(self) -> str:
        return self._parts[-1]['text'] if self._parts and self._parts[-1]['type'] == 'text' else ''

    def _text(self, text: str) -> list[dict[str, Any]]:
        if not text:
            return []
        if self._parts and self._parts[-1]['type'] == 'text':
            self._parts[-1] = {'type': 'text', 'text': self._parts[-1]['text'] + text}
        else:
            self._parts.append({'type': 'text', 'text': text})
        return [{'type': 'text', 'text': text}]
