"""The loop of a conversation: lines in, answers out."""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from align_anything.core.errors import AlignAnythingError, SampleError
from align_anything.core.registry import nearest
from align_anything.core.types import ACTION, MEDIA_KINDS, Media, decoded_medium, words_of
from align_anything.datasets.media import decode
from align_anything.serve.chat.screen import UNDECODED, Screen
from align_anything.serve.chat.talk import PATH, Talk
from align_anything.serve.chat.talkers import Talker

Part = dict[str, Any]
HELP = """\
/image PATH     shows an image with the next message; so do /audio PATH and /video PATH
/system TEXT    sets the system prompt, without a text takes it away
/retry          answers the last message anew
/reset          forgets what was said
/save PATH      writes the conversation to a JSON file; /load PATH goes on from one
/help           shows this
/quit           ends, as Ctrl-D does
A backslash at the end of a line goes on in the next one; // at its beginning stands for a slash. Ctrl-C stops an
answer. A medium alone is sent with an empty line."""
COMMANDS = ('image', 'audio', 'video', 'system', 'retry', 'reset', 'save', 'load', 'help', 'quit', 'exit')
SEEDS = 2**31

ReadLine = Callable[[str], str]
"""Reads a line, showing a prompt. Raises EOFError at the end, KeyboardInterrupt for Ctrl-C."""


class Chat:
    """A conversation with one or several talkers, who are asked the same.

    Args:
        talkers: who answers.
        screen: where it is shown.
        system: the system prompt to begin with.
        seed: of the first answers.
    """

    def __init__(self, talkers: Sequence[Talker], screen: Screen, system: str = '', seed: int = 0) -> None:
        self.talkers, self.screen = talkers, screen
        self.talk = Talk([talker.name for talker in talkers], system)
        self._seeds = random.Random(seed)

    def run(self, read_line: ReadLine) -> None:
        """Talks until the lines end, or one says so."""
        while True:
            try:
                line = self._message(read_line)
            except EOFError:
                return
            except KeyboardInterrupt:
                self.screen.say('\n(/quit ends)')
                continue
            try:
                if not self.heed(line):
                    return
            except AlignAnythingError as error:
                self.screen.say(f'! {error}')
            except KeyboardInterrupt:
                self.screen.say('')

    def heed(self, line: str) -> bool:
        """Does what a line says; returns whether the conversation goes on. Raises SampleError for what cannot be."""
        if line.startswith('/') and not line.startswith('//'):
            name, _, rest = line[1:].partition(' ')
            return self._command(name, rest.strip())
        text = line.removeprefix('/') if line.startswith('//') else line
        if text.strip() or self.talk.waiting:
            self.talk.ask(text)
            self._answer()
        return True

    def _message(self, read_line: ReadLine) -> str:
        lines = [read_line('> ')]
        while lines[-1].endswith('\\'):
            lines[-1] = lines[-1][:-1]
            lines.append(read_line('. '))
        return '\n'.join(lines)

    def _command(self, name: str, rest: str) -> bool:
        if name in ('quit', 'exit'):
            return False
        if name in MEDIA_KINDS:
            self._show(name, rest)
        elif name == 'system':
            self.talk.system = rest
            self.screen.say('(system prompt set)' if rest else '(no system prompt)')
        elif name == 'reset':
            self.talk.reset()
            self.screen.say('(forgotten)')
        elif name == 'retry':
            if not self.talk.take_back():
                raise SampleError('there is no answer to give anew.')
            self._answer()
        elif name in ('save', 'load'):
            if not rest:
                raise SampleError(f'/{name} needs a path.')
            file = _path(rest)
            (self.talk.save if name == 'save' else self.talk.load)(file)
            self.screen.say(f'({"saved to" if name == "save" else "loaded"} {file})')
        elif name == 'help':
            self.screen.say(HELP)
        else:
            raise SampleError(f"there is no command '/{name}'.{nearest(name, COMMANDS)} /help lists them.")
        return True

    def _show(self, kind: Any, rest: str) -> None:
        if not rest:
            raise SampleError(f'/{kind} needs a path.')
        for talker in self.talkers:
            talker.check(kind)
        path = str(_path(rest))
        decode(Media(kind, path))
        self.talk.show(kind, path)
        self.screen.say(f'({kind} waits for the next message)')

    def _answer(self) -> None:
        seed = self._seeds.randrange(SEEDS)
        with closing(spoken_by(self.talkers, [self.talk.asked(n) for n in range(len(self.talkers))], seed)) as spoken:
            answers: list[list[Part]] = [[] for _ in self.talkers]
            problems: dict[int, Exception] = {}
            try:
                if len(self.talkers) == 1:
                    self._one(spoken, answers, problems)
                else:
                    self._several(spoken, answers, problems)
            except KeyboardInterrupt:
                self.screen.end_line()
                self.screen.say('(stopped)')
            finally:
                for number, parts in enumerate(answers):
                    self.talk.hear(number, parts)
        for number, problem in problems.items():
            self.screen.say(f'! {self.talkers[number].name}: {problem}' if len(self.talkers) > 1 else f'! {problem}')

    def _one(self, spoken: Any, answers: list[list[Part]], problems: dict[int, Exception]) -> None:
        for number, item in spoken:
            if isinstance(item, Exception):
                problems[number] = item
            else:
                add_part(answers[number], item, self.screen.part(item))
        self.screen.end_line()
        if not problems and all(part['type'] == 'text' and not part['text'].strip() for part in answers[0]):
            self.screen.say('(an empty answer)')

    def _several(self, spoken: Any, answers: list[list[Part]], problems: dict[int, Exception]) -> None:
        texts = ['' for _ in self.talkers]
        shown: list[tuple[Any, Any]] = []
        with self.screen.columns([talker.name for talker in self.talkers]) as update:
            for number, item in spoken:
                if isinstance(item, Exception):
                    problems[number] = item
                    continue
                path = ''
                if item['type'] in ('text', ACTION):
                    texts[number] += words_of([item])
                else:
                    medium = decoded_medium(item)
                    path = '' if medium is None else str(self.screen.write(item['type'], medium))
                    texts[number] += f'[{item["type"]}{f": {path}" if path else UNDECODED}]\n'
                    if path:
                        shown.append((self.talkers[number].name, item))
                add_part(answers[number], item, path)
                update(texts)
        for name, item in shown:
            self.screen.picture(name, item)


def add_part(parts: list[Part], part: Part, path: str) -> None:
    """Adds a part of an answer, text to the text before it."""
    if part['type'] == 'text' and parts and parts[-1]['type'] == 'text':
        parts[-1] = {'type': 'text', 'text': parts[-1]['text'] + part['text']}
    elif part['type'] in ('text', ACTION) or path:
        parts.append({**part, PATH: path} if path else dict(part))


def _path(text: str) -> Path:
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in '\'"'
    return Path(text[1:-1] if quoted else text).expanduser()


def spoken_by(
    talkers: Sequence[Talker], asked: Sequence[Sequence[Any]], seed: int
) -> Iterator[tuple[int, Part | Exception]]:
    """Yields what all answer as it comes, and why one does not. Closing the iterator ends the answers."""
    said: queue.SimpleQueue[tuple[int, Part | Exception | None]] = queue.SimpleQueue()
    left = threading.Event()

    def work(number: int) -> None:
        try:
            with closing(talkers[number].answer(asked[number], seed)) as answer:
                for part in answer:
                    said.put((number, part))
                    if left.is_set():
                        return
        except AlignAnythingError as error:
            said.put((number, error))
        except Exception as error:
            said.put((number, SampleError(f'{type(error).__name__}: {error}')))
            raise
        finally:
            said.put((number, None))

    workers = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(len(talkers))]
    for worker in workers:
        worker.start()
    try:
        working = len(workers)
        while working:
            number, item = said.get()
            if item is None:
                working -= 1
            else:
                yield number, item
    finally:
        left.set()
        for worker in workers:
            worker.join()
