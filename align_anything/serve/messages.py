"""Messages of OpenAI's form as conversations with media decoded, and responses as messages: the way in and out."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from align_anything.core.errors import SampleError
from align_anything.core.types import ACTION, MEDIA_KINDS, Conversation, MediaKind, decoded_medium, words_of
from align_anything.datasets.conversation import bind_media
from align_anything.datasets.media import decode_conversations
from align_anything.datasets.media.writing import AUDIO_TYPE, IMAGE_TYPE, data_uri, mp4, png, wav
from align_anything.serve import requests
from align_anything.serve.errors import RequestError
from align_anything.serve.fetching import fetch

VIDEO_TYPE = 'video/mp4'
DATA_URI = re.compile(r'data:[\w.+/-]*(?:;[\w.+=-]+)*;base64,', re.ASCII)


@dataclass(frozen=True)
class MediaLimits:
    """What media of a request may be.

    Attributes:
        count: how many there may be in a conversation.
        image_pixels: pixels of the largest image.
        audio_seconds: length of the longest clip of audio.
        allow_urls: whether those behind public URLs are fetched.
        url_bytes: of the largest file that is.
    """

    count: int = 16
    image_pixels: int = 2**25
    audio_seconds: float = 600.0
    allow_urls: bool = False
    url_bytes: int = 2**26

    def of_decoding(self, options: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, dict[str, Any]]:
        """Returns the options of decoding, over other `options` by kind.

        Of audio a little more than is allowed is read, so that more can be told from it.
        """
        limits = {'image': {'max_pixels': self.image_pixels}, 'audio': {'max_seconds': self.audio_seconds + 1}}
        return {kind: {**(options or {}).get(kind, {}), **limits.get(kind, {})} for kind in MEDIA_KINDS}


def rows_of(turns: Sequence[requests.Turn], limits: MediaLimits, reads: frozenset[MediaKind]) -> list[dict[str, Any]]:
    """Returns the messages of a request as turns of a row, every medium as the bytes of its file.

    No path of this machine is ever read. It takes as long as fetching does.

    Args:
        turns: the messages.
        limits: of their media.
        reads: kinds of media that the model reads.

    Raises:
        RequestError: there are too many media, one is of a kind that the model does not read, none at all, or behind a
            URL where none is fetched.
    """
    parts = [(number, part) for number, turn in enumerate(turns) for part in _listed(turn)]
    media = [(number, part) for number, part in parts if part.type != 'text']
    if len(media) > limits.count:
        raise RequestError(f'there are {len(media)} media, and this server takes {limits.count} at once.')
    for number, part in media:
        if KINDS[part.type] not in reads:
            known = ', '.join(sorted(reads))
            raise RequestError(
                f'messages.{number} has {KINDS[part.type]} media, and this model reads {known or "text alone"}.',
                param=f'messages.{number}.content',
            )
    return [_row(turn, limits) for turn in turns]


def decoded_of(rows: Sequence[Mapping[str, Any]], limits: MediaLimits) -> Conversation:
    """Returns turns of a row, of which the last is an answer, as a conversation with media decoded.

    Raises SampleError for turns that are no conversation, and for media that cannot be decoded or are too large.
    """
    (conversation,) = decode_conversations([bind_media(rows, {}, options=limits.of_decoding())])
    require_short(conversation, limits)
    return conversation


def require_short(conversation: Conversation, limits: MediaLimits) -> None:
    """Raises SampleError for audio in a decoded conversation that is longer than is taken."""
    for part in (part for message in conversation for part in message['content'] if part['type'] == 'audio'):
        sound = decoded_medium(part)
        if sound is not None and len(sound.samples) > limits.audio_seconds * sound.rate:
            raise SampleError(f'an audio clip is longer than the {limits.audio_seconds:g} s that this server takes.')


KINDS: dict[str, MediaKind] = {
    'image_url': 'image',
    'input_audio': 'audio',
    'audio_url': 'audio',
    'video_url': 'video',
}
"""Types of parts that bring media."""


def file_bytes(text: str, what: str = 'a medium') -> bytes:
    """Returns what base64 text stands for. Raises RequestError for anything else."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f'{what} is no base64 text: {error}.', code='invalid_base64') from error
    if not data:
        raise RequestError(f'{what} is empty.', code='invalid_base64')
    return data


def _listed(turn: requests.Turn) -> list[Any]:
    return turn.content if isinstance(turn.content, list) else []


def _row(turn: requests.Turn, limits: MediaLimits) -> dict[str, Any]:
    """The turn as templates write it, every medium as the bytes of its file: no path of this machine is ever read."""
    row = turn.model_dump(exclude_none=True)
    if turn.actions is not None:
        # What an answer said of them in words is for people.
        del row['actions']
        return {**row, 'content': [{'type': ACTION, ACTION: done} for done in turn.actions]}
    if isinstance(turn.content, list):
        row['content'] = [_part(part, limits) for part in turn.content]
    elif turn.content is None and turn.role == 'assistant' and (turn.tool_calls or turn.reasoning_content):
        row['content'] = ''
    return row


def _part(part: Any, limits: MediaLimits) -> dict[str, Any]:
    if part.type == 'text':
        return {'type': 'text', 'text': part.text}
    kind, brought = KINDS[part.type], getattr(part, part.type)
    if part.type == 'input_audio':
        content = file_bytes(brought.data, 'input_audio.data')
    else:
        content = _bytes_at(brought if isinstance(brought, str) else brought.url, kind, limits)
    return {'type': kind, kind: {'bytes': content, 'path': None}}


def _bytes_at(url: str, kind: MediaKind, limits: MediaLimits) -> bytes:
    header = DATA_URI.match(url[:200])
    if header is not None:
        return file_bytes(url[header.end() :], f'an {kind}' if kind != 'video' else 'a video')
    if limits.allow_urls and url.startswith(('http://', 'https://')):
        return fetch(url, limits.url_bytes)
    way_out = '' if limits.allow_urls else ' This server fetches no URLs (--allow_urls True lets it fetch public ones).'
    raise RequestError(
        f'{kind} media must come as data URIs, data:…;base64,….{way_out}', param=f'{kind}_url', code='url_refused'
    )


def message_of(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns what a response says as a message of OpenAI's form: text, and media in lists beside it as data URIs.

    The first sound stands under `audio`, as OpenAI has it, all media under `images`, `audios` and `videos`, the steps
    of actions under `actions`. Codes that no codec decodes are left out.
    """
    text = words_of(parts)
    message: dict[str, Any] = {'role': 'assistant', 'content': text}
    if done := [part[ACTION].plain for part in parts if part['type'] == ACTION]:
        message['actions'] = done
    for kind in MEDIA_KINDS:
        found = [medium for part in parts if part['type'] == kind and (medium := decoded_medium(part)) is not None]
        if found:
            name = f'{kind}_url'
            message[f'{kind}s'] = [{'type': name, name: {'url': written(kind, medium)}} for medium in found]
        if found and kind == 'audio':
            data = base64.b64encode(wav(found[0])).decode()
            message['audio'] = {'id': 'audio-0', 'data': data, 'expires_at': 0, 'transcript': text}
    if not text and len(message) > 2:
        message['content'] = None
    return message


def written(kind: MediaKind, medium: Any) -> str:
    """Returns a decoded medium as a data URI: PNG, WAV, MP4."""
    content_type, write = WRITERS[kind]
    return data_uri(content_type, write(medium))


WRITERS = {'image': (IMAGE_TYPE, png), 'audio': (AUDIO_TYPE, wav), 'video': (VIDEO_TYPE, mp4)}
