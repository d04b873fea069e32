"""What a chat template takes: the form of contents, the roles, tools and thoughts it knows. Conversations to text."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from align_anything.core import thoughts
from align_anything.core.errors import ModelError, SampleError
from align_anything.core.logging import get_logger
from align_anything.core.types import Conversation, Message

MARK = 'Zq7Marker'
ELSEWHERE = 'Choose a checkpoint whose template does, or give a template with model_cfgs.chat_template.'

logger = get_logger(__name__)


def text_of(message: Message) -> str:
    """Returns the text parts of a message, joined."""
    return ''.join(part['text'] for part in message['content'] if part['type'] == 'text')


def message_of(role: str, text: str, **more: Any) -> Message:
    """Returns a turn of text."""
    return {'role': role, 'content': [{'type': 'text', 'text': text}] if text else [], **more}


class ChatForm:
    """A chat template, and the form in which it takes what conversations hold. Picklable.

    A system turn that the template refuses, or does not write, is put before the first user turn; `developer` turns
    are system turns where it does not know that role. Both are told once.
    """

    def __init__(self, source: Any, template: str, placeholders: Mapping[str, str], lists_first: bool) -> None:
        """Tries the template on probes.

        Args:
            source: the processor of a family with media, else the tokenizer.
            template: the Jinja text.
            placeholders: the text that stands for one medium of each kind.
            lists_first: whether contents are tried as lists of parts before they are tried as text.

        Raises:
            ModelError: the template shows neither plain strings nor lists of parts.
        """
        self.template = template
        self._source = source
        self._placeholders = dict(placeholders)
        self._takes_system = self._short_ids = True
        self._arguments_as_text = False
        forms = (True, False) if lists_first else (False, True)
        self._parts = next((form for form in forms if self._shows_text(form)), None)
        if self._parts is None:
            raise ModelError(
                'The chat template of this checkpoint shows neither a text nor a list of parts. '
                'Give another one with model_cfgs.chat_template (a path or the Jinja text).'
            )
        self._takes_system = self._shows(message_of('system', MARK), message_of('user', 'x'))
        if not self._takes_system:
            logger.info(
                'The chat template takes no system turn: where a conversation has one, its text is put before that of '
                'the first user turn.'
            )
        self._knows_developer, self._told_developer = 'developer' in template, False
        self.thought_key = next(
            (
                key
                for key in thoughts.KEYS
                if self._shows(message_of('user', 'x'), message_of('assistant', 'x', reasoning_content=MARK), key=key)
            ),
            None,
        )

    def text(self, messages: Conversation, add_generation_prompt: bool = False) -> str:
        """Renders messages whose content is a list of parts.

        Raises SampleError when the template refuses them, or does not write the tools, calls or results in them.
        """
        tools = messages[0].get('tools') if messages else None
        if tools and not self.writes_tools:
            raise SampleError(f'the row has tools, but the chat template does not write any. {ELSEWHERE}')
        if any(message.get('tool_calls') for message in messages) and not self.writes_calls:
            raise SampleError(f'an answer calls a tool, but the chat template writes no calls. {ELSEWHERE}')
        if any(message['role'] == 'tool' for message in messages) and not self.writes_results:
            raise SampleError(f'a tool turn tells a result, but the chat template writes no results. {ELSEWHERE}')
        return self._apply(messages, add_generation_prompt, tools, self.thought_key)

    @cached_property
    def writes_tools(self) -> bool:
        """Whether the template writes the description of tools."""
        tool = {'type': 'function', 'function': {'name': MARK, 'description': 'x', 'parameters': {'type': 'object'}}}
        return self._shows({**message_of('user', 'x'), 'tools': [tool]})

    @cached_property
    def writes_calls(self) -> bool:
        """Whether the template writes the tool calls of an answer."""
        # Mistral's takes no other ids than those of nine letters and digits, DeepSeek's no arguments but as text.
        for self._short_ids, self._arguments_as_text in ((True, False), (False, False), (True, True)):
            if self._shows(*_called(MARK, 'x')):
                return True
        return False

    @cached_property
    def writes_results(self) -> bool:
        """Whether the template writes what a tool returned."""
        return self.writes_calls and self._shows(*_called('x', MARK))

    @cached_property
    def knows_thoughts(self) -> bool:
        """Whether the template has a form for thoughts: a key for them, or tags that it takes off earlier answers."""
        return self.thought_key is not None or '</think>' in self.template

    def _apply(
        self, messages: Conversation, add_generation_prompt: bool, tools: Sequence[Any] | None, thought_key: str | None
    ) -> str:
        from jinja2 import TemplateError

        shaped = self._with_ids(self._with_known_roles([_without_tools(message) for message in messages]))
        try:
            return self._source.apply_chat_template(
                [self._shaped(message, thought_key) for message in shaped],
                chat_template=self.template,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
                **({'tools': list(tools)} if tools else {}),
            )
        except (TemplateError, TypeError, ValueError) as error:
            roles = ', '.join(message['role'] for message in messages) or 'none'
            raise SampleError(f'the chat template refuses this conversation (roles: {roles}): {error}') from error

    def _with_known_roles(self, messages: Conversation) -> Conversation:
        """Returns the messages with `developer` and system turns as the template knows them."""
        known: Conversation = []
        for message in messages:
            if message['role'] == 'developer' and not self._knows_developer:
                if not self._told_developer:
                    self._told_developer = True
                    logger.info('The chat template knows no role `developer`: such turns are rendered as system turns.')
                if known and known[-1]['role'] == 'system':
                    known[-1] = _merged(known[-1], message)
                    continue
                message = {**message, 'role': 'system'}
            known.append(message)
        if self._takes_system or not known or known[0]['role'] != 'system':
            return known
        system, rest = known[0], known[1:]
        first = next((number for number, message in enumerate(rest) if message['role'] == 'user'), None)
        if first is None:
            raise SampleError('the chat template takes no system turn, and there is no user turn to put its text into')
        return [*rest[:first], _merged(system, rest[first], role='user'), *rest[first + 1 :]]

    def _with_ids(self, messages: Conversation) -> Conversation:
        """Returns the messages with ids of nine letters and digits for calls and results where others are refused."""
        if self._short_ids:
            return messages
        done, waiting = [], []
        for number, message in enumerate(messages):
            if message.get('tool_calls'):
                calls = [
                    {**call, 'id': _nine(call.get('id') or f'{number}/{place}')}
                    for place, call in enumerate(message['tool_calls'])
                ]
                waiting = [call['id'] for call in calls]
                message = {**message, 'tool_calls': calls}
            elif message['role'] == 'tool':
                own = message.get('tool_call_id')
                answered = _nine(own) if own else waiting[0] if waiting else _nine(str(number))
                waiting = [other for other in waiting if other != answered]
                message = {**message, 'tool_call_id': answered}
            done.append(message)
        return done

    def _shaped(self, message: Message, thought_key: str | None) -> Message:
        if self._parts:
            content: Any = [part if part['type'] == 'text' else {'type': part['type']} for part in message['content']]
        else:
            content = ''.join(
                part['text'] if part['type'] == 'text' else self._placeholder(part['type']) + '\n'
                for part in message['content']
            )
        shaped = {**message, 'content': content}
        if self._arguments_as_text and message.get('tool_calls'):
            shaped['tool_calls'] = [_with_text(call) for call in message['tool_calls']]
        thought = shaped.pop('reasoning_content', None)
        return shaped if thought is None or thought_key is None else {**shaped, thought_key: thought}

    def _placeholder(self, kind: str) -> str:
        if kind not in self._placeholders:
            raise SampleError(f'this model takes no {kind}')
        return self._placeholders[kind]

    def _shows_text(self, parts: bool) -> bool:
        self._parts = parts
        try:
            shown = self._apply([message_of('user', MARK)], True, None, None)
        except SampleError:
            return False
        # A list pasted as it is shows the keys of its parts.
        return shown.count(MARK) == 1 and "'type'" not in shown and '"type"' not in shown

    def _shows(self, *messages: Message, key: str | None = None) -> bool:
        try:
            return MARK in self._apply(list(messages), False, messages[0].get('tools'), key)
        except SampleError:
            return False


def _called(name: str, result: str) -> Conversation:
    """A probe: a tool is called and tells a result, one of them bearing the mark."""
    call = {'id': 'c1', 'type': 'function', 'function': {'name': name, 'arguments': {'a': 1}}}
    turns = [message_of('user', 'x'), message_of('assistant', '', tool_calls=[call])]
    return turns if name == MARK else [*turns, message_of('tool', result, tool_call_id='c1', name=name)]


def _with_text(call: dict[str, Any]) -> dict[str, Any]:
    """A tool call with its arguments as JSON text."""
    told = call['function']
    return {**call, 'function': {**told, 'arguments': json.dumps(told['arguments'], ensure_ascii=False)}}


def _merged(first: Message, second: Message, role: str = 'system') -> Message:
    """Two turns in one, an empty line between them."""
    between = {'type': 'text', 'text': '\n\n'}
    return {**second, 'role': role, 'content': [*first['content'], between, *second['content']]}


def _without_tools(message: Message) -> Message:
    return {key: value for key, value in message.items() if key not in ('tools', 'prefix', 'weight')}


def _nine(name: str) -> str:
    if re.fullmatch('[A-Za-z0-9]{9}', name):
        return name
    return hashlib.sha256(name.encode()).hexdigest()[:9]
