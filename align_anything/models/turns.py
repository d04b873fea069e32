"""What stands between two turns of a policy in an episode: tokens that are appended, and never rendered again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from align_anything.core.errors import ModelError, SampleError
from align_anything.core.logging import get_logger
from align_anything.core.types import Conversation, Message, Piece
from align_anything.models.chat_form import ELSEWHERE, MARK, message_of
from align_anything.models.encoding import join
from align_anything.models.family import FamilySpec
from align_anything.models.rendering import Run

logger = get_logger(__name__)


class TurnEncoder:
    """Encodes what an environment shows, as the chat template writes it behind a turn of the policy.

    The turns before it stay what they are, token by token: the template is asked with a stand-in for them. What it
    would change of them, such as thoughts that it takes off earlier answers, is kept as it was sampled.

    Args:
        spec: the family of the policy.
    """

    def __init__(self, spec: FamilySpec) -> None:
        self.spec = spec

    def check(self, tools: Sequence[Any]) -> None:
        """Tries the template, with results of tools where there are any.

        Raises ModelError, with the reason, where it cannot write an episode that only grows.
        """
        renderer, kind = self.spec.renderer, self.spec.model_type
        shown = [[message_of('user', 'x')]]
        if tools:
            if not (renderer.form.writes_tools and renderer.form.writes_results):
                raise ModelError(
                    f'the environment has tools, but the chat template of this {kind} checkpoint does not write tools, '
                    f'their calls and what they return. {ELSEWHERE}'
                )
            shown.append([message_of('tool', 'x', name=MARK)])
        for messages in shown:
            try:
                self.between(messages, tools)
            except SampleError as error:
                raise ModelError(
                    f'this {kind} checkpoint cannot act in an environment: {error}. {ELSEWHERE}'
                ) from error
        if self._ends_nothing():
            logger.warning(
                'The chat template writes no token that ends an answer. Episodes keep the one that was sampled, in '
                'front of what the template writes for a later turn: whoever serves the trained model in several turns '
                'should put it there too.'
            )
        elif renderer.splits:
            logger.warning(
                'The chat template writes earlier answers otherwise once later turns follow (without their thoughts, '
                'say). Episodes only grow, so they keep them as they were sampled: whoever serves the trained model in '
                'several turns should keep them too.'
            )

    def between(self, messages: Conversation, tools: Sequence[Any] = ()) -> Run:
        """Returns what the template writes behind the end of a turn: the messages, and what opens the next turn.

        Raises SampleError where it refuses them, or writes the end of a turn otherwise than it was sampled.
        """
        calls = any(message['role'] == 'tool' for message in messages)
        asked = {**message_of('user', 'x'), **({'tools': list(tools)} if tools else {})}
        history = [asked, _stand_in(calls)]
        renderer = self.spec.renderer
        run, full = self.spec.render_prompt([*history, *messages]), renderer.text(history)
        end = renderer.call_end_id if calls and renderer.call_end_id is not None else renderer.end_of_turn_id
        mark = self.spec.tokenizer.convert_ids_to_tokens(end)
        _, found, closing = full.rpartition(MARK)
        ended, is_ended, _ = closing.partition(mark)
        _, kept, behind = run.text.partition(MARK)
        ending = ended + mark if is_ended else mark
        if found and kept and behind.startswith(ending):
            return replace(run, text=behind[len(ending) :])
        if found and kept and not (is_ended or calls or renderer.begins_with_special(behind)):
            # Nothing ends an answer here, wherever it stands: the token that was sampled does.
            return replace(run, text=behind)
        raise SampleError(
            f'its chat template does not end an answer with {mark!r} any more once a later turn follows, so that '
            'an episode would not go on from what was sampled'
        )

    def _ends_nothing(self) -> bool:
        """Whether the template writes nothing that ends an answer, neither behind the last one nor behind others."""
        renderer = self.spec.renderer
        history = [message_of('user', 'x'), _stand_in(calls=False)]
        mark = self.spec.tokenizer.convert_ids_to_tokens(renderer.end_of_turn_id)
        texts = (renderer.text(history), renderer.text([*history, message_of('user', 'x')]))
        return not any(mark in text.partition(MARK)[2] for text in texts)

    def piece(self, run: Run, said: Sequence[int]) -> Piece:
        """Returns the tokens of what stands `between` a turn that said these ids and the next one, with their media.

        They weigh nothing. A turn that a stop string ended gets the token that ends it in the history. Raises
        SampleError where the run cannot be encoded.
        """
        shown, closing = self.spec.encode_run(run), self._closing(said)
        if not closing:
            return shown
        return join([Piece(torch.tensor(closing), torch.zeros(len(closing))), shown], self.spec.merge_media)

    def unexpanded(self, run: Run, said: Sequence[int]) -> list[int]:
        """Returns the same tokens with one placeholder for each medium."""
        return [*self._closing(said), *self.spec.encoder.unexpanded(run, first=False)]

    def _closing(self, said: Sequence[int]) -> list[int]:
        ended = bool(said) and said[-1] in self.spec.stop_token_ids
        return [] if ended else [self.spec.renderer.end_of_turn_id]


def with_tools(conversation: Conversation, tools: Sequence[Any]) -> Conversation:
    """Returns the conversation with further tools beside those that it has."""
    if not tools or not conversation:
        return conversation
    first = conversation[0]
    return [{**first, 'tools': [*first.get('tools', []), *tools]}, *conversation[1:]]


def with_turns(conversation: Conversation, messages: Conversation) -> Conversation:
    """Returns the conversation with messages behind it; of two user turns in a row one is made."""
    if not messages or not conversation or not conversation[-1]['role'] == messages[0]['role'] == 'user':
        return [*conversation, *messages]
    last, first = conversation[-1], messages[0]
    # Words are kept apart from words; where there are none, a picture stands where the instruction ends.
    words = any(part['type'] == 'text' for part in first['content'])
    between = [{'type': 'text', 'text': '\n\n'}] if words else []
    beside = {key: value for key, value in first.items() if key not in ('role', 'content')}
    joined: Message = {**last, **beside, 'content': [*last['content'], *between, *first['content']]}
    return [*conversation[:-1], joined, *messages[1:]]


def _stand_in(calls: bool) -> Message:
    """An answer whose beginning, or the name of whose call, is the mark."""
    if not calls:
        return message_of('assistant', MARK)
    call = {'id': 'c1', 'type': 'function', 'function': {'name': MARK, 'arguments': {}}}
    return message_of('assistant', '', tool_calls=[call])
