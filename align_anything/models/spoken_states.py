"""The state of a body in words, as policies of tokens read it: each number as one of 256 bins."""

from __future__ import annotations

from align_anything.core.actions import DATASET, STATE, ActionSpace
from align_anything.core.errors import SampleError
from align_anything.core.types import Conversation, Message


def stated(conversation: Conversation, space: ActionSpace | None) -> Conversation:
    """Returns the conversation with the states that the space names told in words, behind all else of their turn.

    pi0-FAST and pi0.5 write them so. Raises SampleError for a turn that shows pictures and tells no state, or another
    one than the space names.
    """
    if space is None or not space.states:
        return conversation
    return [_told(message, space) if message['role'] == 'user' else message for message in conversation]


def _told(message: Message, space: ActionSpace) -> Message:
    if STATE not in message:
        if any(part['type'] != 'text' for part in message['content']):
            raise SampleError(f'a step tells no state ({", ".join(space.states)}), which the policy reads')
        return message
    bins = space.state_bins(message[STATE], message.get(DATASET, ''))
    line = {'type': 'text', 'text': f'\nState: {" ".join(map(str, bins))};'}
    return {**message, 'content': [*message['content'], line]}
