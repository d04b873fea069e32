"""Tool calls in the text of an answer, read back in the form in which the chat template writes them."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

from align_anything.core.errors import SampleError
from align_anything.core.thoughts import opened_thought
from align_anything.core.types import Conversation
from align_anything.models.chat_form import message_of
from align_anything.models.rendering import ChatRenderer

NAME, KEY, VALUE = 'Zq7Tool', 'zq7key', 'zq7value'
DECODER = json.JSONDecoder()


THOUGHT_END = re.compile(r'[<\[◁]\|?(?:/|END_|end_)\w*(?:think|thought|reason)\w*\|?[>\]▷]', re.IGNORECASE)


@dataclass(frozen=True)
class CallForm:
    """How a template writes calls: `opening`, a JSON object of name and arguments or a list of them, `closing`.

    Attributes:
        opening: what stands before a call; empty where an answer that calls is its call.
        closing: what stands behind it.
        name, arguments: the keys of the object.
        middle: where the name stands before a JSON object of the arguments alone, what is between the two.
    """

    opening: str
    closing: str
    name: str = ''
    arguments: str = ''
    middle: str = ''

    def split(self, text: str) -> tuple[str, list[dict[str, Any]]]:
        """Returns what is said before the calls, and the calls in OpenAI's form.

        A text that has the form of no call is said whole.
        """
        found = self._split(text)
        return (text, []) if found is None else found

    def _split(self, text: str) -> tuple[str, list[dict[str, Any]]] | None:
        said, mark, rest = text.partition(self.opening) if self.opening else ('', '{', text.strip())
        if not mark:
            return None
        calls: list[dict[str, Any]] = []
        while rest := self._behind_marks(rest):
            name, middle, behind = rest.partition(self.middle) if self.middle else ('', '', rest)
            try:
                value, end = DECODER.raw_decode(behind.lstrip())
            except ValueError:
                return None
            if self.middle:
                value = [{self.name: name.strip(), self.arguments: value}]
            read = [self._call(one) for one in (value if isinstance(value, list) else [value])]
            if None in read:
                return None
            calls += read
            rest = behind.lstrip()[end:]
        return (said.rstrip(), calls) if calls else None

    def holds_back(self, text: str) -> int:
        """Returns how many characters at the end of a text that grows may be those of a call, and are not shown yet."""
        if not self.opening:
            return len(text) if text.lstrip()[:1] in ('{', '[', '') else 0
        begun = text.find(self.opening)
        if begun >= 0:
            return len(text) - len(text[:begun].rstrip())
        longest = next((n for n in range(len(self.opening) - 1, 0, -1) if text.endswith(self.opening[:n])), 0)
        kept = text[: len(text) - longest]
        return len(text) - len(kept.rstrip())

    def _behind_marks(self, text: str) -> str:
        """The text behind the marks and separators that may stand between two calls."""
        before = None
        while before != text:
            before, text = text, text.lstrip(' \t\r\n,;')
            for mark in (self.opening, self.closing):
                text = text.removeprefix(mark) if mark else text
        return text

    def _call(self, value: Any) -> dict[str, Any] | None:
        value = value.get('function', value) if isinstance(value, Mapping) else None
        if not isinstance(value, Mapping) or not isinstance(value.get(self.name), str):
            return None
        arguments = value.get(self.arguments, {})
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except ValueError:
                return None
        if not isinstance(arguments, Mapping):
            return None
        return {
            'id': f'call_{secrets.token_hex(12)}',
            'type': 'function',
            'function': {'name': value[self.name], 'arguments': json.dumps(arguments, ensure_ascii=False)},
        }


def call_form(renderer: ChatRenderer) -> CallForm | None:
    """Returns how the chat template of a checkpoint writes calls, found out by a probe.

    None where it writes none, or not as JSON.
    """
    if not renderer.form.writes_tools or not renderer.form.writes_calls:
        return None
    call = {'type': 'function', 'function': {'name': NAME, 'arguments': {KEY: VALUE}}}
    asked: Conversation = [message_of('user', 'x')]
    try:
        prompt = renderer.text(asked, add_generation_prompt=True)
        full = renderer.text([*asked, message_of('assistant', '', tool_calls=[call])])
    except SampleError:
        return None
    prompt = prompt.removesuffix(opened_thought(prompt))
    return _form_of(full[len(commonprefix([prompt, full])) :], renderer)


def _form_of(written: str, renderer: ChatRenderer) -> CallForm | None:
    """The form of what a template writes for a call of `NAME` with the argument `KEY`."""
    found = _json_with_call(written)
    if found is not None:
        start, end, record = found
        name = next(key for key, value in record.items() if value == NAME)
        arguments = next((key for key, value in record.items() if KEY in json.dumps(value)), None)
        keys, middle = (name, arguments), ''
    else:
        start, (first, end) = written.find(NAME), _arguments(written)
        keys, middle = ('name', 'arguments'), written[start + len(NAME) : first].strip()
        if not 0 <= start < first or not middle:
            return None
    if None in keys:
        return None
    ids = [renderer.end_of_turn_id, renderer.call_end_id]
    closing = written[end:]
    for mark in [renderer.tokenizer.convert_ids_to_tokens(token) for token in ids if token is not None]:
        closing = closing.partition(mark)[0]
    opening = THOUGHT_END.split(written[:start])[-1]
    return CallForm(opening.strip(), closing.strip(), *keys, middle)


def _arguments(written: str) -> tuple[int, int]:
    """Where the JSON object of the arguments begins and ends; both -1 where there is none."""
    for start in (match.start() for match in re.finditer('{', written)):
        try:
            value, end = DECODER.raw_decode(written, start)
        except ValueError:
            continue
        if value == {KEY: VALUE}:
            return start, end
    return -1, -1


def _json_with_call(written: str) -> tuple[int, int, Mapping[str, Any]] | None:
    """The longest JSON value in a text that is a call or a list of one: where it begins and ends, and the call."""
    at = written.find(NAME)
    for start in range(max(at, 0)):
        if written[start] not in '{[':
            continue
        try:
            value, end = DECODER.raw_decode(written, start)
        except ValueError:
            continue
        record = value[0] if isinstance(value, list) and len(value) == 1 else value
        record = record.get('function', record) if isinstance(record, Mapping) else None
        if end > at and isinstance(record, Mapping) and NAME in record.values():
            return start, end, record
    return None
