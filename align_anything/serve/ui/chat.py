"""Conversations on the page: the checkpoints that are open, and what was said with them."""

from __future__ import annotations

import gc
import mimetypes
import os
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from align_anything.configs.resolve import Resolved
from align_anything.core.errors import AlignAnythingError, SampleError, SettingsError
from align_anything.core.types import ACTION, MEDIA_KINDS, Media, Message, decoded_medium, words_of
from align_anything.datasets.media import decode
from align_anything.serve.chat.loop import SEEDS, add_part, spoken_by
from align_anything.serve.chat.run import open_talkers
from align_anything.serve.chat.screen import write_medium
from align_anything.serve.chat.talk import PATH, Talk
from align_anything.serve.chat.talkers import Talker
from align_anything.serve.settings import ANY, Chat
from align_anything.serve.ui.paths import Root
from align_anything.serve.ui.preview import asked_for, outside
from align_anything.trainers.launch import quieten_libraries, resolved_of

Part = dict[str, Any]
PAUSE = 0.1
"""Seconds between two looks at an answer that grows."""


class Models:
    """Checkpoints that are open; those that nobody asked for last are closed when others are opened.

    Args:
        root: the folder that they may lie in.
    """

    def __init__(self, root: Root) -> None:
        self._root = root
        self._open: dict[tuple[str, ...], Talker] = {}
        self._lock = threading.Lock()

    def talkers(self, sources: Sequence[str], settings: Sequence[str]) -> list[Talker]:
        """Returns what answers for checkpoints, opened with settings as the command `chat` takes them.

        Raises SettingsError and ModelError as that command does, and SettingsError for paths outside of the folder.
        """
        asked = [(source, *settings) for source in sources]
        resolved = [chat_settings(source, settings, self._root) for source in sources]
        with self._lock:
            unwanted = [key for key in self._open if key not in asked]
            for key in unwanted:
                del self._open[key]
            if unwanted:
                _free()
            quieten_libraries()
            for key, own in zip(asked, resolved, strict=True):
                if key not in self._open:
                    (self._open[key],) = open_talkers(own)
            return [self._open[key] for key in asked]

    def close(self) -> None:
        """Closes all of them."""
        with self._lock:
            self._open.clear()
            _free()


def chat_settings(source: str, settings: Sequence[str], root: Root) -> Resolved:
    """Returns the settings of a conversation with a checkpoint.

    Raises SettingsError as the command `chat` does, and for paths outside of `root`.
    """
    if not source.strip():
        raise SettingsError(['choose a checkpoint.'])
    words = ['--model_name_or_path', source, *settings]
    problems = outside(words, root)
    if problems:
        raise SettingsError(problems)
    if any(word.partition('=')[0] in ('--help', '-h') for word in words):
        raise SettingsError(['`align-anything chat --help` lists the settings.'])
    resolved = resolved_of(ANY, Chat, words, os.environ)
    problems = root.problems(asked_for(resolved))
    if problems:
        raise SettingsError(problems)
    if resolved.algorithm.url is not None or resolved.algorithm.compare_model_name_or_path is not None:
        raise SettingsError(['url and compare are of the command; choose a checkpoint, or take the tab Compare.'])
    return resolved


@dataclass
class Session:
    """What one browser has said with one checkpoint, or with several that were asked the same.

    Attributes:
        talk: the conversation.
        folder: where media of answers are written.
        stopping: set while the answer is to end.
    """

    talk: Talk
    folder: Path
    stopping: threading.Event = field(default_factory=threading.Event)
    seeds: random.Random = field(default_factory=random.Random)

    def ask(self, talkers: Sequence[Talker], text: str, files: Sequence[str]) -> None:
        """Adds a message with media. Raises SampleError for files that cannot be read, or that a talker does not."""
        if not text.strip() and not files:
            raise SampleError('write something, or add a medium.')
        shown = [(_kind_of(file), file) for file in files]
        for kind, file in shown:
            for talker in talkers:
                talker.check(kind)
            decode(Media(kind, file))
        for kind, file in shown:
            self.talk.show(kind, file)
        self.talk.ask(text)

    def answer(self, talkers: Sequence[Talker]) -> Iterator[dict[int, str]]:
        """Answers the last message, and yields from time to time, and at the end, why some do not answer.

        What was said so far is in `history`. Closing the iterator ends the answers, and what was said stays.
        """
        self.stopping.clear()
        asked = [self.talk.asked(number) for number in range(len(talkers))]
        self.growing = [[] for _ in talkers]
        problems: dict[int, str] = {}
        shown = time.monotonic()
        try:
            with closing(spoken_by(talkers, asked, self.seeds.randrange(SEEDS))) as spoken:
                for number, item in spoken:
                    if isinstance(item, Exception):
                        problems[number] = str(item)
                    else:
                        add_part(self.growing[number], item, self._file_of(item))
                    if self.stopping.is_set():
                        break
                    if time.monotonic() - shown > PAUSE:
                        shown = time.monotonic()
                        yield problems
        finally:
            growing, self.growing = self.growing, []
            for number, parts in enumerate(growing):
                self.talk.hear(number, parts)
        yield problems

    growing: list[list[Part]] = field(default_factory=list)
    """What each has answered so far to the last message; empty between answers."""

    def history(self, number: int) -> list[Message]:
        """Returns what was said with one, in the form of gradio's chatbot."""
        turns = list(self.talk.turns[number])
        if self.growing:
            turns.append({'role': 'assistant', 'content': self.growing[number] or [{'type': 'text', 'text': '…'}]})
        return [{'role': turn['role'], 'content': [_shown(part) for part in turn['content']]} for turn in turns]

    def _file_of(self, part: Part) -> str:
        medium = None if part['type'] in ('text', ACTION) else decoded_medium(part)
        return '' if medium is None else str(write_medium(self.folder, part['type'], medium))


def problem_of(error: AlignAnythingError) -> list[str]:
    """Returns an error as lines."""
    return error.problems if isinstance(error, SettingsError) else [str(error)]


def _shown(part: Part) -> Part:
    if part['type'] in ('text', ACTION):
        return {'type': 'text', 'text': words_of([part])}
    return {'path': str(part.get(PATH) or part[part['type']])}


def _kind_of(file: str) -> Any:
    kind = (mimetypes.guess_type(file)[0] or '').partition('/')[0]
    if kind not in MEDIA_KINDS:
        raise SampleError(f'{Path(file).name} is no {", ".join(MEDIA_KINDS[:-1])} or {MEDIA_KINDS[-1]}.')
    return kind


def _free() -> None:
    # Models and what generates with them refer to each other in circles.
    gc.collect()
    torch.cuda.empty_cache()
