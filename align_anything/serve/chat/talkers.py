"""Who answers in a conversation: a checkpoint, or a server of OpenAI's form."""

from __future__ import annotations

import base64
import json
import mimetypes
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from align_anything.core.errors import ModelError, SampleError
from align_anything.core.types import ACTION, MEDIA_KINDS, Media, MediaKind, Message
from align_anything.datasets.media import decode
from align_anything.datasets.media.writing import data_uri
from align_anything.datasets.spoken_actions import actions_of
from align_anything.models.acting.known import ACTS
from align_anything.serve.messages import written
from align_anything.trainers.runs.generator import Generator

Part = dict[str, Any]
CONNECT_SECONDS, SILENT_SECONDS = 10.0, 600.0
ERRORS = 400
SOUND_FORMATS = {'.mp3': 'mp3', '.flac': 'flac', '.ogg': 'ogg', '.opus': 'opus', '.aac': 'aac', '.m4a': 'm4a'}
DATA = 'data: '


class Talker(Protocol):
    """One that answers.

    Attributes:
        name: what it goes by.
    """

    name: str

    def check(self, kind: MediaKind) -> None:
        """Raises SampleError for media of a kind that it does not read."""
        ...

    def answer(self, turns: Sequence[Message], seed: int) -> Iterator[Part]:
        """Yields what it answers as it comes: pieces of text, and media decoded. Closing the iterator ends it.

        Media in the turns are paths, or decoded. Raises SampleError and ModelError.
        """
        ...


class LocalTalker:
    """A checkpoint that answers.

    Args:
        name: what it goes by.
        generator: it.
    """

    def __init__(self, name: str, generator: Generator) -> None:
        self.name, self._generator = name, generator

    def check(self, kind: MediaKind) -> None:
        """As `Talker.check`."""
        reads = self._generator.spec.reads
        if kind not in reads:
            raise SampleError(f'{self.name} reads {", ".join(["text", *sorted(reads)])}, and no {kind}.')

    def answer(self, turns: Sequence[Message], seed: int) -> Iterator[Part]:
        """As `Talker.answer`. A denoiser is shown the last turn alone: it knows no conversations."""
        generator = self._generator
        converses = generator.spec.unit in ('token', *ACTS)
        shown = [self._readable(turn) for turn in turns] if converses else list(turns[-1:])
        example = generator.encode(shown, reserved=1)
        sampling = replace(generator.sampling, responses=1, seeds=(seed,))
        if generator.spec.unit == 'token':
            left = generator.spec.max_length - len(example.prompt)
            sampling = replace(sampling, max_new_tokens=min(sampling.max_new_tokens, left))
        with closing(generator.stream(example, sampling)) as stream:
            for item in stream:
                if isinstance(item, dict):
                    yield item

    def _readable(self, turn: Message) -> Message:
        """A turn without the media that the model has written and does not read; a place where they were stays."""
        known = self._generator.spec.reads | self._generator.spec.emits
        parts = [part for part in turn['content'] if part['type'] == 'text' or part['type'] in known]
        return {**turn, 'content': parts or [{'type': 'text', 'text': '…'}]}


class RemoteTalker:
    """A server that answers, in OpenAI's form.

    Args:
        url: its address, such as `http://127.0.0.1:8000/v1`.
        key: its API key, None for none.
        name: what it calls the model; None is the first that it lists.
        options: further parameters of each request.
    """

    def __init__(self, url: str, key: str | None, name: str | None, options: Mapping[str, Any]) -> None:
        import httpx2

        headers = {} if key is None else {'Authorization': f'Bearer {key}'}
        timeout = httpx2.Timeout(SILENT_SECONDS, connect=CONNECT_SECONDS)
        self._url, self._options = url.rstrip('/'), dict(options)
        self._client = httpx2.Client(headers=headers, timeout=timeout)
        self.name = name or self._first_model()

    def check(self, kind: MediaKind) -> None:
        """As `Talker.check`: the server says itself what it does not read."""

    def answer(self, turns: Sequence[Message], seed: int) -> Iterator[Part]:
        """As `Talker.answer`."""
        import httpx2

        asked = {'model': self.name, 'messages': [sent(turn) for turn in turns], 'stream': True, 'seed': seed}
        asked |= self._options
        try:
            with self._client.stream('POST', f'{self._url}/chat/completions', json=asked) as answer:
                if answer.status_code >= ERRORS:
                    answer.read()
                    raise SampleError(_told(answer))
                for line in answer.iter_lines():
                    if line.startswith(DATA) and line != f'{DATA}[DONE]':
                        yield from _parts_of(json.loads(line[len(DATA) :]))
        except (httpx2.HTTPError, ValueError) as error:
            raise SampleError(f'{self._url} does not answer: {type(error).__name__} {error}'.rstrip()) from error

    def _first_model(self) -> str:
        import httpx2

        try:
            answer = self._client.get(f'{self._url}/models')
            if answer.status_code >= ERRORS:
                raise ModelError(f'{self._url}/models: {_told(answer)}')
            return answer.json()['data'][0]['id']
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, LookupError, TypeError) as error:
            raise ModelError(f'{self._url} lists no models as OpenAI does: {type(error).__name__} {error}') from error


def sent(turn: Message) -> dict[str, Any]:
    """Returns a turn as it is sent to a server: media as data URIs. Raises SampleError for files that are not there."""
    if done := [part[ACTION] for part in turn['content'] if part['type'] == ACTION]:
        return {'role': turn['role'], 'content': '', 'actions': [actions_of('an answer', own).plain for own in done]}
    parts = [_sent_part(part) for part in turn['content']]
    if all(part['type'] == 'text' for part in parts):
        return {'role': turn['role'], 'content': ''.join(part['text'] for part in parts)}
    if turn['role'] == 'assistant':
        # Media of its own are nothing that a server takes back.
        texts = [part['text'] for part in parts if part['type'] == 'text']
        return {'role': 'assistant', 'content': ''.join(texts) or '…'}
    return {'role': turn['role'], 'content': parts}


def _sent_part(part: Part) -> dict[str, Any]:
    kind = part['type']
    if kind == 'text':
        return part
    medium = part[kind]
    if isinstance(medium, str):
        suffix, content = Path(medium).suffix.lower(), _read(medium)
        if kind == 'audio':
            form = SOUND_FORMATS.get(suffix, 'wav')
            return {'type': 'input_audio', 'input_audio': {'data': base64.b64encode(content).decode(), 'format': form}}
        uri = data_uri(mimetypes.guess_type(medium)[0] or f'{kind}/{suffix[1:] or "x"}', content)
    else:
        uri = written(kind, medium)
    return {'type': f'{kind}_url', f'{kind}_url': {'url': uri}}


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise SampleError(f'{path} cannot be read: {error.strerror}.') from error


def _parts_of(chunk: Mapping[str, Any]) -> Iterator[Part]:
    """What a chunk of a stream says. Raises SampleError for an error in it."""
    if chunk.get('error'):
        raise SampleError(str(chunk['error'].get('message', chunk['error'])))
    for choice in chunk.get('choices', []):
        delta = choice.get('delta') or {}
        if delta.get('content'):
            yield {'type': 'text', 'text': delta['content']}
        for call in delta.get('tool_calls') or []:
            yield {'type': 'text', 'text': json.dumps(call.get('function'), ensure_ascii=False)}
        for done in delta.get('actions') or []:
            yield {'type': ACTION, ACTION: actions_of('the answer', done)}
        for kind in MEDIA_KINDS:
            for part in delta.get(f'{kind}s') or []:
                yield {'type': kind, kind: decode(Media(kind, part[f'{kind}_url']['url']))}


def _told(answer: Any) -> str:
    try:
        said = answer.json()['error']
        return said['message'] if isinstance(said, dict) else str(said)
    except (ValueError, LookupError, TypeError):
        return f'the server answers {answer.status_code}.'
