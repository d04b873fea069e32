"""Conversations as JSON, on their way to a reward service and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from align_anything.core.errors import RewardError
from align_anything.core.types import (
    ACTION,
    BESIDE_CONTENT,
    MEDIA_KINDS,
    Conversation,
    Media,
    MediaKind,
    Video,
    decoded_medium,
)
from align_anything.datasets.media import decode
from align_anything.datasets.media.writing import AUDIO_TYPE, IMAGE_TYPE, data_uri, png, wav


def text_of(conversation: Conversation) -> str:
    """Returns the text of the last user turn, the question that a row asks; of the last turn where there is none."""
    turns = [message for message in conversation if message['role'] == 'user'] or conversation[-1:]
    return ''.join(part['text'] for message in turns[-1:] for part in message['content'] if part['type'] == 'text')


def to_json(conversation: Conversation, send_media: bool) -> list[dict[str, Any]]:
    """Returns the messages as JSON values.

    Decoded media become data URIs, PNG and WAV, one for each frame of a video. Without `send_media`, and where a codec
    could not decode its codes, and of embeddings, only placeholders `{'type': kind}` are kept.
    """

    def part_of(part: Mapping[str, Any]) -> dict[str, Any]:
        kind = part['type']
        if kind == 'text':
            return {'type': kind, kind: part[kind]}
        medium = decoded_medium(part) if send_media else None
        return {'type': kind} if medium is None else {'type': kind, kind: WRITERS[kind](medium)}

    return [{**message, 'content': [part_of(part) for part in message['content']]} for message in conversation]


def from_json(messages: Sequence[Mapping[str, Any]]) -> Conversation:
    """Returns the messages as a conversation, media decoded; a medium that was not sent stays a placeholder.

    Raises:
        RewardError: a part is malformed, or a medium is no data URI: paths and URLs would be read on this machine.
        SampleError: a medium cannot be decoded.
    """
    return [
        {
            'role': message['role'],
            'content': [_part(part) for part in _parts(message['content'])],
            **{key: message[key] for key in BESIDE_CONTENT if key in message},
        }
        for message in messages
    ]


def _parts(content: Any) -> list[Any]:
    return [{'type': 'text', 'text': content}] if isinstance(content, str) else content


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    kind = part.get('type')
    if kind == 'text' and isinstance(part.get('text'), str):
        return {'type': 'text', 'text': part['text']}
    if kind == ACTION and part.get(ACTION) is not None:
        return {'type': ACTION, ACTION: part[ACTION].plain}
    if kind not in MEDIA_KINDS:
        raise RewardError(f'a message has a part that is neither text nor one of {", ".join(MEDIA_KINDS)}.')
    medium = part.get(kind)
    if medium is None:
        return {'type': kind}
    frames = medium if isinstance(medium, list) else [medium]
    if not all(isinstance(frame, str) and frame.startswith('data:') for frame in frames):
        raise RewardError(f'a message has {kind} media that are no data URI.')
    if isinstance(medium, list):
        medium = [decode(Media('image', frame)) for frame in medium]
    return {'type': kind, kind: decode(Media(kind, medium))}


def _image(image: Any) -> str:
    return data_uri(IMAGE_TYPE, png(image))


def _frames(video: Video) -> list[str]:
    from PIL import Image

    return [_image(Image.fromarray(frame)) for frame in video.frames]


WRITERS: dict[MediaKind, Callable[[Any], Any]] = {
    'image': _image,
    'video': _frames,
    'audio': lambda audio: data_uri(AUDIO_TYPE, wav(audio)),
}
