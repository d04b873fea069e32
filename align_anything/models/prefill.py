"""What a prompt begins an answer with: a thought that the template opens, or a turn of the row that it goes on from."""

from __future__ import annotations

from os.path import commonprefix

from align_anything.core.errors import SampleError
from align_anything.core.thoughts import opened_thought
from align_anything.core.types import Conversation
from align_anything.models.chat_form import message_of
from align_anything.models.rendering import MARK, ChatRenderer, without_beginning


def prefill_of(renderer: ChatRenderer, messages: Conversation) -> str:
    """Returns the end of the generation prompt that belongs to the answer; empty where the policy writes all of it.

    That is what the template begins answers with when they are to be generated and does not write itself before
    finished ones, such as `<think>\n`, and the beginning of the answer that the conversation ends with.
    """
    before = without_beginning(messages)
    opened = renderer.render_prompt(before).text
    return _begun(renderer, before, opened) + renderer.render_prompt(messages).text[len(opened) :]


def _begun(renderer: ChatRenderer, messages: Conversation, opened: str) -> str:
    plain = renderer.text(messages)
    if not opened.startswith(plain):
        return opened_thought(opened)
    opening, answered = opened[len(plain) :], [*messages, message_of('assistant', MARK)]
    last = _opening(renderer, plain, answered)
    if opening == last:  # with an empty thought in it, say, which finished answers begin with as well
        return opened_thought(opening)
    # Before a last answer without a thought templates write an empty one, before others nothing.
    finished = _opening(renderer, plain, [*answered, message_of('user', 'Go on.')])
    finished = last if finished is None else finished
    begun = '' if finished is None else opening[len(commonprefix([opening, finished])) :]
    return max(begun if begun.strip() else '', opened_thought(opening), key=len)


def _opening(renderer: ChatRenderer, plain: str, answered: Conversation) -> str | None:
    """What the template writes between a conversation, `plain`, and the finished answer to it; None if it does not."""
    try:
        full = renderer.text(answered)
    except SampleError:  # some refuse a conversation that ends with a question
        return None
    return full[len(plain) :].partition(MARK)[0] if full.startswith(plain) and MARK in full else None
