"""What goes between a run and environments in other processes: JSON, media as data URIs, in messages of a length.

Nothing that comes in can name a file or an address: media bring their bytes along.
"""

from __future__ import annotations

import io
import json
import math
import select
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from align_anything.core.actions import DATASET, STATE, ActionSpace
from align_anything.core.errors import ModelError, SampleError, WorldError
from align_anything.core.types import (
    ACTION,
    BESIDE_CONTENT,
    MEDIA_KINDS,
    Audio,
    Media,
    MediaKind,
    Message,
    Video,
    decoded_medium,
)
from align_anything.datasets.conversation import bind_media
from align_anything.datasets.media import decode, decode_conversations
from align_anything.datasets.media.writing import AUDIO_TYPE, IMAGE_TYPE, data_uri, wav
from align_anything.datasets.spoken_actions import actions_of
from align_anything.environments.base import Call, Observation, Said, Step
from align_anything.environments.observing import messages_of
from align_anything.environments.steps import checked_step

MOST_BYTES = 2**26
"""Of a message."""
LENGTH_BYTES = 8
CHUNK = 2**20
DATA = 'data:'
KEYS = {'role', 'content', *BESIDE_CONTENT, 'tools', 'prefix', 'weight', STATE, DATASET}
"""What a message may hold."""
QUICKLY = 1
"""How hard PNG files are compressed that are read again at once."""


class Line:
    """Messages of JSON through a socket, each after its length. Methods raise TimeoutError and OSError as sockets do.

    Args:
        connection: a connected stream.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def send(self, record: Any, seconds: float | None = None) -> None:
        """Sends a record within so many seconds. Raises WorldError where it is none of JSON, or too long."""
        content = to_bytes(record)
        self._connection.settimeout(seconds)
        self._connection.sendall(len(content).to_bytes(LENGTH_BYTES, 'little') + content)

    def receive(self, seconds: float | None = None) -> Any:
        """Returns the next record, None at the end of the line. Raises WorldError for what is none."""
        end = math.inf if seconds is None else time.monotonic() + seconds
        head = self._read(LENGTH_BYTES, end)
        if not head:
            return None
        length = int.from_bytes(head, 'little')
        if length > MOST_BYTES:
            raise WorldError(f'a message of {length} bytes, more than the {MOST_BYTES} that one may have.')
        return from_bytes(self._read(length, end))

    def has_something(self) -> bool:
        """Tells whether something is there to be read, be it the end."""
        return bool(select.select([self._connection], [], [], 0)[0])

    def close(self) -> None:
        """Ends the line."""
        self._connection.close()

    def _read(self, length: int, end: float) -> bytes:
        found = bytearray()
        while len(found) < length:
            left = None if end == math.inf else end - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError
            self._connection.settimeout(left)
            chunk = self._connection.recv(min(CHUNK, length - len(found)))
            if not chunk:
                return b''
            found += chunk
        return bytes(found)


def to_bytes(record: Any) -> bytes:
    """Returns a record as JSON. Raises WorldError where it is none, or longer than a message may be."""
    try:
        content = json.dumps(record, default=_plain).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise WorldError(f'what goes to or comes from an environment cannot be written as JSON: {error}.') from error
    if len(content) > MOST_BYTES:
        raise WorldError(f'a message to or from an environment has {len(content)} bytes; it may have {MOST_BYTES}.')
    return content


def from_bytes(content: bytes) -> Any:
    """Returns a record of JSON. Raises WorldError for anything else."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise WorldError(f'a message to or from an environment is no JSON: {error!r}.') from error


def _plain(value: Any) -> Any:
    if isinstance(value, (numpy.generic, numpy.ndarray)):
        return value.tolist()
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(f'it holds a {type(value).__name__}')


# What a run says


def row_out(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a row, the media of its messages written."""
    return {**row, 'messages': [_message_out(message) for message in row.get('messages', [])]}


def row_in(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the row of a record. Raises SampleError for broken media."""
    return {**record, 'messages': [_message_in(message) for message in record.get('messages', [])]}


def said_out(said: Said | None) -> dict[str, Any] | None:
    """Returns what the policy said in a turn, media written."""
    if said is None:
        return None
    calls = [{'name': call.name, 'arguments': call.arguments} for call in said.calls]
    done = None if said.actions is None else said.actions.plain
    parts = [_part_out(part) for part in said.parts]
    return {'text': said.text, 'calls': calls, 'parts': parts, 'actions': done, 'problem': said.problem}


def said_in(record: Mapping[str, Any] | None) -> Said | None:
    """Returns what the policy said of a record."""
    if record is None:
        return None
    calls = tuple(Call(call['name'], call['arguments']) for call in record['calls'])
    done = None if record.get('actions') is None else actions_of('a turn', record['actions'])
    parts = [_part_in(part) for part in record['parts']]
    return Said(record['text'], calls, parts, done, record.get('problem', ''))


# What an environment answers


def actions_out(space: ActionSpace | None) -> dict[str, list[str]] | None:
    """Returns what can be done in an environment: the names of actions, or of the numbers of one."""
    return None if space is None else {'names': list(space.names), 'dimensions': list(space.dimensions)}


def actions_in(record: Any) -> ActionSpace | None:
    """Returns what can be done of a record. Raises WorldError where it is none."""
    if record is None:
        return None
    if not isinstance(record, Mapping):
        raise WorldError(f'actions came as {type(record).__name__}, and should be names or dimensions.')
    try:
        return ActionSpace.from_json(record, 'the actions that an environment tells')
    except ModelError as error:
        raise WorldError(str(error)) from error


def observation_out(observation: Observation | None) -> list[Message] | str:
    """Returns what an environment shows, its media decoded here and written.

    Raises WorldError for what is no observation, and SampleError for broken media.
    """
    if observation is None:
        return ''
    if type(observation) is not Observation:
        raise WorldError(f'an observation is an Observation, not a {type(observation).__name__}.')
    if isinstance(observation.messages, str) or not observation.messages:
        return observation.messages or ''
    (decoded,) = decode_conversations([bind_media(messages_of(observation.messages), {}, needs_reply=False)])
    return [_message_out(message) for message in decoded]


class _Step(BaseModel):
    model_config = ConfigDict(extra='forbid', strict=True)

    observation: list[dict[str, Any]] | str | None = None
    reward: float | None = None
    costs: dict[str, float] = {}
    done: bool = False
    truncated: bool = False
    info: dict[str, Any] = {}


def step_out(step: Step | None) -> dict[str, Any] | None:
    """Returns what came of a turn. Raises WorldError as `checked_step` does, and as `observation_out` does."""
    if step is None:
        return None
    checked = checked_step(step)
    return {
        'observation': None if checked.observation is None else observation_out(checked.observation),
        'reward': checked.reward,
        'costs': checked.costs,
        'done': checked.done,
        'truncated': checked.truncated,
        'info': checked.info,
    }


def observation_in(record: Any) -> Observation:
    """Returns what an environment shows. Raises WorldError and SampleError for a record that is none."""
    if isinstance(record, str):
        return Observation(record)
    if not isinstance(record, list):
        raise WorldError(f'an observation came as {type(record).__name__}, and should be a text or messages.')
    return Observation([_message_in(message) for message in record])


def step_in(record: Any) -> Step | None:
    """Returns what came of a turn. Raises WorldError and SampleError for a record that is none."""
    if record is None:
        return None
    try:
        step = _Step.model_validate(record)
    except ValidationError as error:
        problem = error.errors()[0]
        raise WorldError(f'a step came with {".".join(map(str, problem["loc"]))}: {problem["msg"]}.') from error
    observation = None if step.observation is None else observation_in(step.observation)
    return Step(observation, step.reward, step.costs, step.done, step.info, step.truncated)


# Messages, part by part


def _message_out(message: Message) -> Message:
    return {**message, 'content': [_part_out(part) for part in message['content']]}


def _message_in(message: Any) -> Message:
    if not isinstance(message, Mapping):
        raise WorldError(f'a message came as {type(message).__name__}.')
    # Elsewhere in the house others name media too, by their paths.
    strange = message.keys() - KEYS
    if strange:
        raise WorldError(f'a message came with {", ".join(map(repr, sorted(strange)))}; media stand in its content.')
    content = message.get('content')
    return {**message, 'content': [_part_in(part) for part in content] if isinstance(content, list) else content}


def _part_out(part: Mapping[str, Any]) -> dict[str, Any]:
    kind = part['type']
    if kind == ACTION:
        return {'type': ACTION, ACTION: part[ACTION].plain}
    if kind not in MEDIA_KINDS:
        return {**part}
    medium = decoded_medium(part)
    # Codes that no codec decodes mean nothing elsewhere.
    return {'type': kind} if medium is None else {'type': kind, kind: _WRITERS[kind](medium)}


def _part_in(part: Any) -> Any:
    if isinstance(part, str):
        return part
    kind = part.get('type') if isinstance(part, Mapping) else None
    if kind == 'text':
        return part
    if kind == ACTION:
        return {'type': ACTION, ACTION: actions_of('a message', part.get(ACTION))}
    if kind not in MEDIA_KINDS:
        raise WorldError(f'a part of a message came as {kind or type(part).__name__}, and should be text or a medium.')
    return {'type': kind} if part.get(kind) is None else {'type': kind, kind: _READERS[kind](part[kind])}


def _image_out(image: Any) -> str:
    file = io.BytesIO()
    image.save(file, format='PNG', compress_level=QUICKLY)
    return data_uri(IMAGE_TYPE, file.getvalue())


def _audio_out(audio: Audio) -> str:
    return data_uri(AUDIO_TYPE, wav(audio))


def _video_out(video: Video) -> dict[str, Any]:
    return {
        'frames': [_image_out(Image.fromarray(frame)) for frame in video.frames],
        'timestamps': video.timestamps.tolist(),
        'fps': video.fps,
        'audio': None if video.audio is None else _audio_out(video.audio),
    }


def _of_uri(kind: MediaKind) -> Callable[[Any], Any]:
    def read(uri: Any) -> Any:
        if not isinstance(uri, str) or not uri.startswith(DATA):
            raise SampleError(f'the {kind} of a message to or from an environment is no data URI.')
        return decode(Media(kind, uri))

    return read


def _video_in(record: Any) -> Video:
    if not isinstance(record, Mapping) or not record.keys() >= {'frames', 'timestamps', 'fps'}:
        raise SampleError('the video of a message to or from an environment has not frames, timestamps and fps.')
    frames, times, sound = record['frames'], record['timestamps'], record.get('audio')
    if not isinstance(frames, Sequence) or not frames or len(frames) != len(times):
        raise SampleError('the video of a message to or from an environment needs a timestamp for each frame.')
    pictures = [numpy.asarray(_READERS['image'](frame)) for frame in frames]
    if len({picture.shape for picture in pictures}) > 1:
        raise SampleError('the video of a message to or from an environment has frames of different sizes.')
    audio = None if sound is None else _READERS['audio'](sound)
    return Video(numpy.stack(pictures), numpy.asarray(times, numpy.float64), float(record['fps']), audio)


_WRITERS: Mapping[MediaKind, Callable[[Any], Any]] = {'image': _image_out, 'audio': _audio_out, 'video': _video_out}
_READERS: Mapping[MediaKind, Callable[[Any], Any]] = {
    'image': _of_uri('image'),
    'audio': _of_uri('audio'),
    'video': _video_in,
}
