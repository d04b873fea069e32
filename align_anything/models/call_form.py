"""Tool calls in the text of an answer, read back in the form in which the chat template writes them."""

from __future__ import annotations

import ast
import json
import math
import re
import secrets
from abc import ABC, abstractmethod
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
SECOND_KEY, SECOND_VALUE = 'zq7further', 'zq7word'
FENCE = re.compile(r'```\w*\s*')
"""What opens or closes a block of code, in which some models write their calls."""
BARE_LIST = re.compile(r'\[\s*[A-Za-z_][\w.]*\(')
"""How an answer begins that is a list of calls of Python."""


class Unread(ValueError):
    """A call that was begun and cannot be read: says why."""


def _no_number(name: str) -> Any:
    raise ValueError(f'{name} is no number of JSON')


DECODER = json.JSONDecoder(parse_constant=_no_number)

THOUGHT_END = re.compile(r'[<\[◁]\|?(?:/|END_|end_)\w*(?:think|thought|reason)\w*\|?[>\]▷]', re.IGNORECASE)


@dataclass(frozen=True)
class CallForm(ABC):
    """How a template writes calls.

    Attributes:
        opening: what stands before a call; empty where an answer that calls is its call.
        closing: what stands behind it.
    """

    opening: str
    closing: str

    def split(self, text: str) -> tuple[str, list[dict[str, Any]]]:
        """Returns what is said before the calls, and the calls in OpenAI's form; words behind them are left out.

        A text that has the form of no call is said whole.
        """
        return self.read(text)[:2]

    def read(self, text: str) -> tuple[str, list[dict[str, Any]], str]:
        """Returns what `split` does, and what is wrong with a call that is begun and cannot be read.

        None of the calls is read then. The third is empty where nothing is wrong. Calls in a thought are none.
        """
        thoughts = [found.end() for found in THOUGHT_END.finditer(text)]
        begin = thoughts[-1] if thoughts else 0
        try:
            found = self._split(text[begin:])
        except Unread as error:
            return text, [], str(error)
        except RecursionError:
            return text, [], 'it is nested too deeply'
        if found is None:
            return text, [], ''
        said, calls = found
        return (text[:begin] + said).rstrip(), calls, ''

    @abstractmethod
    def _split(self, text: str) -> tuple[str, list[dict[str, Any]]] | None:
        """As `split`; None for a text that has the form of no call. Raises Unread for one that cannot be read."""

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


@dataclass(frozen=True)
class JSONCalls(CallForm):
    """A JSON object of name and arguments, or a list of them.

    Attributes:
        name, arguments: the keys of the object.
        middle: where the name stands before a JSON object of the arguments alone, what is between the two.
    """

    name: str = ''
    arguments: str = ''
    middle: str = ''

    def _split(self, text: str) -> tuple[str, list[dict[str, Any]]] | None:
        said, mark, rest = text.partition(self.opening) if self.opening else ('', '', text)
        if self.opening and not mark:
            return None
        calls: list[dict[str, Any]] = []
        while rest := self._behind_marks(rest, further=bool(calls)):
            name, middle, behind = rest.partition(self.middle) if self.middle else ('', '', rest)
            behind = behind.lstrip()
            if not (mark or calls or self._begins_bare(behind)):
                return None
            try:
                value, end = DECODER.raw_decode(behind)
            except ValueError as error:
                raise Unread(f'it is no JSON ({error})') from error
            if self.middle:
                own = name.rpartition(self.opening)[2] if self.opening else name
                value = [{self.name: own.strip(), self.arguments: value}]
            own_calls = value if isinstance(value, list) else [value]
            if not (mark or calls or all(map(self._is_bare, own_calls))):
                return None
            calls += [self._call(one) for one in own_calls]
            rest = behind[end:]
        if not calls and mark:
            raise Unread('there is nothing in it')
        return (said.rstrip(), calls) if calls else None

    def _begins_bare(self, text: str) -> bool:
        """Whether an answer without a mark may be a call: a record of JSON with a name in it."""
        return text[:1] in ('{', '[') and f'"{self.name}"' in text

    def _is_bare(self, value: Any) -> bool:
        value = value.get('function', value) if isinstance(value, Mapping) else None
        return isinstance(value, Mapping) and {self.name, self.arguments} <= value.keys()

    def _behind_marks(self, text: str, further: bool) -> str:
        """The text behind the marks, separators and fences that may stand around calls.

        Behind a first call words are passed over, up to the next one that is opened.
        """
        before = None
        while before != text:
            before, text = text, text.lstrip(' \t\r\n,;')
            for mark in (self.opening, self.closing):
                text = text.removeprefix(mark) if mark else text
            text = text[found.end() :] if (found := FENCE.match(text)) else text
        if not further or (self.middle in text if self.middle else text[:1] in ('{', '[')):
            return text
        _, mark, behind = text.partition(self.opening) if self.opening else ('', '', '')
        return self._behind_marks(behind, further=False) if mark else ''

    def _call(self, value: Any) -> dict[str, Any]:
        value = value.get('function', value) if isinstance(value, Mapping) else None
        if not isinstance(value, Mapping) or not isinstance(value.get(self.name), str):
            raise Unread(f"it is no object with a text under '{self.name}'")
        arguments = value.get(self.arguments, {})
        if isinstance(arguments, str):
            try:
                arguments = DECODER.decode(arguments)
            except ValueError as error:
                raise Unread(f"the text under '{self.arguments}' is no JSON ({error})") from error
        if not isinstance(arguments, Mapping):
            raise Unread(f"'{self.arguments}' is no object")
        return _told(value[self.name], arguments)


@dataclass(frozen=True)
class TaggedCalls(CallForm):
    """A name, and each argument behind its key, between tags: as GLM and Qwen3-Coder write them.

    A value is text as it stands, and JSON where it can be read as a number, an object or the like.

    Attributes:
        before_key, behind_key, behind_value: the tags.
    """

    before_key: str
    behind_key: str
    behind_value: str

    def _split(self, text: str) -> tuple[str, list[dict[str, Any]]] | None:
        said, *rest = text.split(self.opening)
        calls = []
        for one in rest:
            name = re.match(r'\s*([\w.-]+)', one)
            if name is None:
                raise Unread('it names no tool')
            given = re.findall(self._argument, one[name.end() :])
            if len(given) != one.count(self.before_key):
                raise Unread(f'each {self.before_key} takes a key, {self.behind_key}, a value and {self.behind_value}')
            calls.append(_told(name[1], {key: _value(value) for key, value in given}))
        return (said.rstrip(), calls) if calls else None

    @property
    def _argument(self) -> re.Pattern[str]:
        marks = (re.escape(mark) for mark in (self.before_key, self.behind_key, self.behind_value))
        before, behind, end = marks
        return re.compile(rf'(?s){before}\s*([\w.-]+?)\s*{behind}\n?(.*?)\n?{end}')


@dataclass(frozen=True)
class PythonCalls(CallForm):
    """Calls as Python writes them, `f(a=1, b='x')`, alone or in a list: as Llama 4 does. They are read, never run."""

    def _split(self, text: str) -> tuple[str, list[dict[str, Any]]] | None:
        said, mark, rest = text.partition(self.opening) if self.opening else ('', '(', text)
        if not mark:
            return None
        rest = rest.strip().removesuffix(self.closing).strip()
        if fence := FENCE.match(rest):
            rest = rest[fence.end() :].partition('```')[0].strip()
        begun = bool(self.opening) or BARE_LIST.match(rest) is not None
        try:
            values = [own.value if type(own) is ast.Expr else None for own in ast.parse(rest).body]
            found = [one for value in values for one in (value.elts if type(value) is ast.List else [value])]
            if not found or not all(_is_named(one) for one in found):
                raise ValueError('each is a name with named arguments, as in f(a=1)')
            calls = [
                _told(ast.unparse(one.func), {item.arg: ast.literal_eval(item.value) for item in one.keywords})
                for one in found
            ]
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
            if begun:
                raise Unread(f'it is no list of calls in Python ({error})') from error
            return None
        return said.rstrip(), calls


def _is_named(one: Any) -> bool:
    """Whether an expression is a call whose arguments all have names."""
    return type(one) is ast.Call and not one.args and all(item.arg is not None for item in one.keywords)


def _told(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A call in OpenAI's form. Raises Unread for arguments that are none of JSON."""
    try:
        written = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise Unread(f'its arguments are none of JSON ({error})') from error
    return {
        'id': f'call_{secrets.token_hex(12)}',
        'type': 'function',
        'function': {'name': _whole(name), 'arguments': _whole(written)},
    }


def _whole(text: str) -> str:
    """The text, halves of pairs of UTF-16 in it replaced: no file and no tokenizer takes them."""
    return text.encode('utf-8', 'replace').decode('utf-8')


def _value(text: str) -> Any:
    try:
        value = DECODER.decode(text)
    except (ValueError, RecursionError):
        return text
    return text if type(value) is str or value in (math.inf, -math.inf) else value


def call_form(renderer: ChatRenderer) -> CallForm | None:
    """Returns how the chat template of a checkpoint writes calls, found out by a probe.

    None where it writes none, or in a form that is not known.
    """
    if not renderer.form.writes_tools or not renderer.form.writes_calls:
        return None
    probes = [{KEY: VALUE}, {KEY: VALUE, SECOND_KEY: SECOND_VALUE}]
    try:
        one, two = (_written(renderer, arguments) for arguments in probes)
    except SampleError:
        return None
    return _form_of(one, renderer) or _tagged(two) or _of_python(two, renderer)


def _written(renderer: ChatRenderer, arguments: Mapping[str, Any]) -> str:
    """What the template writes for a call of `NAME`, behind the generation prompt."""
    call = {'type': 'function', 'function': {'name': NAME, 'arguments': dict(arguments)}}
    asked: Conversation = [message_of('user', 'x')]
    prompt = renderer.text(asked, add_generation_prompt=True)
    full = renderer.text([*asked, message_of('assistant', '', tool_calls=[call])])
    prompt = prompt.removesuffix(opened_thought(prompt))
    return full[len(commonprefix([prompt, full])) :]


def _tagged(written: str) -> TaggedCalls | None:
    """The form of a call with two arguments whose keys and values stand between tags."""
    at = [written.find(word) for word in (NAME, KEY, VALUE, SECOND_KEY, SECOND_VALUE)]
    if at != sorted(at) or at[0] < 0:
        return None
    behind_key = written[at[1] + len(KEY) : at[2]].strip()
    between = re.fullmatch(r'\s*(</[^<>]*>)\s*(<[^>]*>?)', written[at[2] + len(VALUE) : at[3]])
    opening = THOUGHT_END.split(written[: at[0]])[-1].strip()
    if between is None or not behind_key or not opening:
        return None
    return TaggedCalls(opening, '', between[2].strip(), behind_key, between[1])


def _of_python(written: str, renderer: ChatRenderer) -> PythonCalls | None:
    """The form of a call with two arguments that is one in Python."""
    found = re.search(rf'\[?{NAME}\({KEY}=.{VALUE}., {SECOND_KEY}=.{SECOND_VALUE}.\)\]?', written)
    if found is None:
        return None
    opening = THOUGHT_END.split(written[: found.start()])[-1].strip()
    return PythonCalls(opening, _less_ends(written[found.end() :], renderer))


def _less_ends(closing: str, renderer: ChatRenderer) -> str:
    """What closes a call, less the tokens that end the turn."""
    ids = [renderer.end_of_turn_id, renderer.call_end_id]
    for mark in [renderer.tokenizer.convert_ids_to_tokens(token) for token in ids if token is not None]:
        closing = closing.partition(mark)[0]
    return closing.strip()


def _form_of(written: str, renderer: ChatRenderer) -> JSONCalls | None:
    """The form of what a template writes in JSON for a call of `NAME` with the argument `KEY`."""
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
    opening = THOUGHT_END.split(written[:start])[-1]
    return JSONCalls(opening.strip(), _less_ends(written[end:], renderer), *keys, middle)


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
