"""A conversation as it stands: what was said, with whom, and what the next message shows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align_anything.core.errors import SampleError
from align_anything.core.files import atomic_write_json
from align_anything.core.types import ACTION, MEDIA_KINDS, MediaKind, Message
from align_anything.datasets.spoken_actions import actions_of

Part = dict[str, Any]
PATH = 'path'
"""Where an answer's medium was written, beside the medium in its part."""


@dataclass
class Talk:
    """One conversation, or several that were asked the same.

    Attributes:
        names: who answers.
        system: the system prompt; empty for none.
        waiting: media that the next message shows.
        turns: what was said so far by and to each, without the system prompt.
    """

    names: Sequence[str]
    system: str = ''
    waiting: list[Part] = field(default_factory=list)
    turns: list[list[Message]] = field(default_factory=list)
    _questions: list[Message | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets what was said, and not the system prompt."""
        self.turns, self.waiting = [[] for _ in self.names], []
        self._questions = [None for _ in self.names]

    def show(self, kind: MediaKind, path: str) -> None:
        """Adds a medium to the next message."""
        self.waiting.append({'type': kind, kind: path})

    def ask(self, text: str) -> None:
        """Adds a message, with the media that wait."""
        words = [{'type': 'text', 'text': text}] if text else []
        self._questions = [{'role': 'user', 'content': [*self.waiting, *words]} for _ in self.names]
        for own, question in zip(self.turns, self._questions, strict=True):
            own.append(question)
        self.waiting = []

    def hear(self, number: int, parts: Sequence[Part]) -> None:
        """Adds what one has answered; where that is nothing, its question is forgotten too."""
        if parts:
            self.turns[number].append({'role': 'assistant', 'content': list(parts)})
        else:
            self.turns[number].pop()

    def take_back(self) -> bool:
        """Takes the answers to the last question back, so that it waits for others; tells whether there was one.

        Those who said nothing to it are asked again too.
        """
        questions = [question for question in self._questions if question is not None]
        if len(questions) < len(self.turns):
            return False
        for own, question in zip(self.turns, questions, strict=True):
            if own[-2:-1] == [question] and own[-1]['role'] == 'assistant':
                own.pop()
            elif own[-1:] != [question]:
                own.append(question)
        return True

    def asked(self, number: int) -> list[Message]:
        """Returns the turns that one is to answer, media as they are read."""
        before = [{'role': 'system', 'content': [{'type': 'text', 'text': self.system}]}] if self.system else []
        said = [{**turn, 'content': [_read(part) for part in turn['content']]} for turn in self.turns[number]]
        return [*before, *said]

    def save(self, file: Path) -> None:
        """Writes the conversations as a list of records with `messages`, media by their paths.

        Raises SampleError where it cannot be written.
        """
        records = []
        for number, name in enumerate(self.names):
            before = [{'role': 'system', 'content': self.system}] if self.system else []
            turns = [{**turn, 'content': [_saved(part) for part in turn['content']]} for turn in self.turns[number]]
            records.append({'model': name, 'messages': [*before, *turns]})
        try:
            atomic_write_json(file, records)
        except OSError as error:
            raise SampleError(f'{file} cannot be written: {error.strerror}.') from error

    def load(self, file: Path) -> None:
        """Goes on from conversations that `save` wrote, one for each talker. Raises SampleError for other files."""
        try:
            records = json.loads(file.read_text(encoding='utf-8'))
            found = [[_turn(turn) for turn in record['messages']] for record in records]
            systems = [own[0]['content'][0]['text'] for own in found if own and own[0]['role'] == 'system']
        except OSError as error:
            raise SampleError(f'{file} cannot be read: {error.strerror}.') from error
        except (ValueError, LookupError, TypeError, AttributeError, SampleError) as error:
            raise SampleError(f'{file} holds no saved conversation.') from error
        if len(found) not in (1, len(self.names)):
            raise SampleError(f'{file} holds {len(found)} conversations, and there are {len(self.names)} here.')
        rest = [[turn for turn in own if turn['role'] != 'system'] for own in found]
        self.reset()
        self.system = systems[0] if systems else ''
        self.turns = [list(rest[number % len(rest)]) for number in range(len(self.names))]
        self._questions = [_question(own) for own in self.turns]


def _question(turns: Sequence[Message]) -> Message | None:
    """The question at the end of a conversation, answered or not."""
    return next((turn for turn in turns[-2:][::-1] if turn['role'] == 'user'), None)


def _read(part: Part) -> Part:
    return {key: value for key, value in part.items() if key in ('type', 'text', ACTION, *MEDIA_KINDS)}


def _saved(part: Part) -> Part:
    kind = part['type']
    if kind == 'text':
        return {'type': 'text', 'text': part['text']}
    if kind == ACTION:
        return {'type': ACTION, ACTION: actions_of('an answer', part[ACTION]).plain}
    return {'type': kind, kind: str(Path(part.get(PATH) or part[kind]).absolute())}


def _turn(record: dict[str, Any]) -> Message:
    content, role = record['content'], record['role']
    if role not in ('system', 'user', 'assistant'):
        raise ValueError(role)
    parts = [{'type': 'text', 'text': content}] if isinstance(content, str) else [_read(part) for part in content]
    for part in parts:
        if part['type'] == ACTION:
            actions_of('an answer', part[ACTION])
        elif not isinstance(part[part['type']], str):
            raise TypeError(part['type'])
    return {'role': role, 'content': parts}
