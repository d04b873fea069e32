"""What environments show, in the normal form of conversations, media decoded, and no more of it than is allowed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from align_anything.core.errors import WorldError
from align_anything.core.types import MEDIA_KINDS, Conversation, Message
from align_anything.datasets.conversation import bind_media
from align_anything.datasets.media import decode_conversations
from align_anything.datasets.media.audio import at_rate
from align_anything.environments.base import Observation

ROLES = ('user', 'tool')
LEFT_OUT = ' … [{} characters left out] … '


@dataclass(frozen=True)
class Limits:
    """How much an observation may hold.

    Attributes:
        characters: of text; of a longer one the middle is left out.
        media: pictures, clips and sounds; further ones are left out.
        audio_rate: samples per second that sounds are brought to; None leaves them.
    """

    characters: int = 10_000
    media: int = 4
    audio_rate: int | None = None


def shown(observation: Observation, limits: Limits) -> Conversation:
    """Returns the messages of an observation. Raises WorldError for what is none, SampleError for broken media."""
    if type(observation) is not Observation:
        raise WorldError(f'an observation is an Observation, not a {type(observation).__name__}.')
    if not observation.messages:
        return []
    messages = messages_of(observation.messages)
    bound = bind_media(messages, {}, needs_reply=False)
    capacity = _Capacity(limits)
    kept = [capacity.of(message) for message in bound]
    (decoded,) = decode_conversations([kept])
    return decoded if limits.audio_rate is None else at_rate([decoded], limits.audio_rate)[0]


def messages_of(given: Any) -> list[Message]:
    """Returns a text as a user turn, and turns as they are. Raises WorldError for those of others, and for no turns."""
    if isinstance(given, str):
        return [{'role': 'user', 'content': given}]
    if not isinstance(given, (list, tuple)) or not all(isinstance(message, Mapping) for message in given):
        raise WorldError(f'an observation is a text or a list of turns, not {str(given)[:80]!r}.')
    strange = [message.get('role') for message in given if message.get('role') not in ROLES]
    if strange:
        raise WorldError(f"an observation has a turn of '{strange[0]}', but can only have those of user and tool.")
    return list(given)


class _Capacity:
    """What may still be shown."""

    def __init__(self, limits: Limits) -> None:
        self.characters, self.media = limits.characters, limits.media

    def of(self, message: Message) -> Message:
        """The message with as much of its content as may be shown."""
        parts: list[dict[str, Any]] = []
        for part in message['content']:
            if part['type'] in MEDIA_KINDS:
                self.media -= 1
                left = f'[{part["type"]} left out]'
                parts.append(part if self.media >= 0 else {'type': 'text', 'text': left})
            else:
                text = part['text']
                parts.append({**part, 'text': clipped(text, max(self.characters, 0))})
                self.characters -= len(text)
        return {**message, 'content': parts}


def clipped(text: str, longest: int) -> str:
    """Returns the text, of one that is longer its beginning and its end, with a note of what is left out."""
    if len(text) <= longest:
        return text
    half = longest // 2
    return text[:half] + LEFT_OUT.format(len(text) - 2 * half) + text[len(text) - half :]
