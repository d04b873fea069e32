"""Conversations as JSON, on their way to a reward service and back."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from align_anything.core.errors import RewardError
from align_anything.core.types import BESIDE_CONTENT, MEDIA_KINDS, Audio, Conversation, Embedding, Media, Video
from align_anything.datasets.media import decode


def text_of(conversation: Conversation) -> str:
    """Returns the text of the last user turn, the question that a row asks; of the last turn where there is none."""
    turns = [message for message in conversation if message['role'] == 'user'] or conversation[-1:]
    return ''.join(part['text'] for message in turns[-1:] for part in message['content'] if part['type'] == 'text')


def to_json(conversation: Conversation, send_media: bool) -> list[dict[str, Any]]:
    """Returns the messages as JSON values.

    Decoded media become data URIs, PNG and WAV, one for each frame of a video; without `send_media` only placeholders
    `{'type': kind}` are kept, and of embeddings always: nothing can be seen or heard of them.
    """

    def part_of(part: Mapping[str, Any]) -> dict[str, Any]:
        kind = part['type']
        if kind == 'text' or not send_media:
            return {key: part[key] for key in ('type', 'text') if key in part}
        if type(part[kind]) is Embedding:
            return {'type': kind}
        return {'type': kind, kind: WRITERS[kind](part[kind])}

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
    buffer = io.BytesIO()
    image.save(buffer, format='PNG')
    return _data_uri('image/png', buffer)


def _frames(video: Video) -> list[str]:
    from PIL import Image

    return [_image(Image.fromarray(frame)) for frame in video.frames]


def _audio(audio: Audio) -> str:
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, audio.samples, audio.rate, format='WAV', subtype='FLOAT')
    return _data_uri('audio/wav', buffer)


def _data_uri(kind: str, buffer: io.BytesIO) -> str:
    return f'data:{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}'


WRITERS: dict[str, Callable[[Any], Any]] = {'image': _image, 'video': _frames, 'audio': _audio}
