"""A language model behind an endpoint of OpenAI's form as a judge of two answers: what it is asked, what it says."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from align_anything.core.errors import RewardError, SettingsError
from align_anything.core.files import lines_of
from align_anything.datasets.media.writing import AUDIO_TYPE, data_uri, png, wav
from align_anything.metrics.samples import Sample
from align_anything.rewards.posting import Service

FILE = 'judgements.jsonl'
INSTRUCTION = (
    'You compare two answers to the same request. Say which one serves the person who asked better: heed whether it '
    'is correct, does what was asked, is safe, and is as long as it needs to be. The order of the answers says nothing '
    'about them. Give your reasons in a few sentences, and end with one line that is [[A]] if answer A is better, '
    '[[B]] if answer B is better, or [[C]] if neither is.'
)
VERDICT = re.compile(r'\[\[([ABC])\]\]')
WORTH = {'A': 1.0, 'C': 0.5, 'B': 0.0}
"""What a verdict is worth to answer A."""
Part = dict[str, Any]


class Endpoint:
    """An endpoint of OpenAI's form that is asked for completions of chats. What it says is kept in a file.

    Args:
        url: its base address, such as `http://localhost:8000/v1`.
        model: what it calls the model.
        key_variable: environment variable with the key; without that variable none is sent.
        workers: questions that wait for an answer at once.
        timeout: seconds without any word after which a request has failed.
        retries: how often it is sent again.
        kept: file that answers are kept in, so that none is asked for twice.

    Raises SettingsError for what is no address.
    """

    def __init__(
        self, url: str, model: str, *, key_variable: str, workers: int, timeout: float, retries: int, kept: Path
    ) -> None:
        if not url.startswith(('http://', 'https://')):
            raise SettingsError([f"judge: '{url}' is no address; write for instance http://localhost:8000/v1"])
        key = os.environ.get(key_variable, '')
        self._service = Service('judge', f'{url.rstrip("/")}/chat/completions', timeout, retries, key)
        self._url, self._model, self._workers, self._file = url, model, workers, kept
        self._lock = threading.Lock()
        self._known = _read(kept)

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self._service.close()

    def say(self, chats: Sequence[Sequence[Part]], tokens: int) -> list[str]:
        """Returns what it says to each chat, greedily. Raises RewardError where it is gone, or refuses one."""
        with ThreadPoolExecutor(self._workers) as pool:
            return list(pool.map(lambda chat: self._said(chat, tokens), chats))

    def _said(self, chat: Sequence[Part], tokens: int) -> str:
        content = {'model': self._model, 'messages': list(chat), 'temperature': 0, 'max_tokens': tokens}
        asked = json.dumps([self._url, content], sort_keys=True).encode()
        key = hashlib.sha256(asked).hexdigest()
        if key in self._known:
            return self._known[key]
        answer = self._service.post(content)
        try:
            said = answer['choices'][0]['message']['content'] or ''
        except (KeyError, IndexError, TypeError) as error:
            raise RewardError(
                f"{self._service.name} answered without choices[0].message.content; is it of OpenAI's form?"
            ) from error
        with self._lock, open(self._file, 'a', encoding='utf-8') as file:
            self._known[key] = said
            file.write(json.dumps({'asked': key, 'said': said}) + '\n')
        return said


def chat_of(first: Sample, second: Sample, instruction: str) -> list[Part]:
    """Returns what the judge is asked about two responses to one prompt, the first being answer A.

    Pictures, frames of videos and sounds are sent along, those of the prompt too.
    """
    parts = [_text('The request:\n')]
    for turn in first.conversation():
        parts += [_text(f'\n{turn["role"]}: '), *_sent(turn['content'])]
    for name, sample in (('A', first), ('B', second)):
        parts += [_text(f'\n\nAnswer {name}:\n'), *_sent([_text(sample.text), *_media(sample)])]
    return [{'role': 'system', 'content': instruction}, {'role': 'user', 'content': _joined(parts)}]


def verdict_of(said: str) -> str | None:
    """Returns the last verdict in what a judge says, `A`, `B` or `C` for neither; None where there is none."""
    found = VERDICT.findall(said)
    return found[-1] if found else None


def worth_of(verdict: str | None, swapped: str | None) -> float | None:
    """Returns what two verdicts are worth to a response: 1 better, 0.5 neither, 0 worse, or between.

    It was answer A of the first one, and B of the second, so that a liking for a place falls out of the mean. None
    where one of them is no verdict, for then it would not.
    """
    if verdict is None or swapped is None:
        return None
    return (WORTH[verdict] + 1 - WORTH[swapped]) / 2


def _media(sample: Sample) -> list[Part]:
    return [part for part in sample.parts() if part['type'] != 'text']


def _sent(content: Sequence[Part]) -> list[Part]:
    from PIL import Image

    sent: list[Part] = []
    for part in content:
        kind = part['type']
        if kind == 'text':
            sent.append(_text(part['text']))
        elif kind == 'image':
            sent.append(_picture(part['image']))
        elif kind == 'video':
            sent += [_picture(Image.fromarray(frame)) for frame in part['video'].frames]
        else:
            data = data_uri(AUDIO_TYPE, wav(part['audio'], rounded=True)).partition(',')[2]
            sent.append({'type': 'input_audio', 'input_audio': {'data': data, 'format': 'wav'}})
    return sent


def _picture(image: Any) -> Part:
    return {'type': 'image_url', 'image_url': {'url': data_uri('image/png', png(image))}}


def _text(text: str) -> Part:
    return {'type': 'text', 'text': text}


def _joined(parts: Sequence[Part]) -> str | list[Part]:
    """Texts next to each other as one; a mere text where there is nothing else."""
    found: list[Part] = []
    for part in parts:
        if found and found[-1]['type'] == part['type'] == 'text':
            found[-1] = _text(found[-1]['text'] + part['text'])
        elif part.get('text') != '':
            found.append(part)
    return found[0]['text'] if len(found) == 1 else found


def _read(file: Path) -> dict[str, str]:
    """What was said before, by what was asked. A line that a kill cut off is asked for again."""
    known = {}
    if file.exists():
        text = file.read_text(encoding='utf-8')
        whole = text[: text.rfind('\n') + 1]
        if whole != text:
            file.write_text(whole, encoding='utf-8')
        known = {line['asked']: line['said'] for line in map(json.loads, lines_of(whole))}
    return known
