"""Actions as tokens: the action space of a model is their codec, and a few ids of its vocabulary are their codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from align_anything.core.actions import Actions, ActionSpace
from align_anything.core.errors import ModelError, SampleError
from align_anything.core.store import digest
from align_anything.core.types import ACTION, CodedMedia, Conversation
from align_anything.models.codecs.base import CodecRules
from align_anything.models.codes import KindOfCodes, MediaCodes

PADDING = -1
"""The code of a step behind the last one of a chunk: a row that ends within it has none there."""


@dataclass(frozen=True)
class ActionRules(CodecRules):
    """The arithmetic of an action space in the place of a codec: nothing is loaded, and nothing is made beforehand."""

    space: ActionSpace = ActionSpace()
    prepared: ClassVar[bool] = False

    def grid(self, medium: Any) -> tuple[int, ...]:
        """All chunks are of one length."""
        return (self.space.chunk,)

    def open(self, device: torch.device | str = 'cpu') -> ActionCodec:
        """Returns the space as a codec."""
        return ActionCodec(self)

    def coded(self, actions: Actions) -> CodedMedia:
        """Returns the codes of a turn, padded to a whole chunk. Raises SampleError for what is not of the space."""
        codes, chunk = self.space.encode(actions), self.space.chunk
        if not 0 < codes.shape[1] <= chunk:
            raise SampleError(
                f'a turn has {codes.shape[1]} steps of actions, but the model says {chunk} in one (action_chunk)'
            )
        missing = codes.new_full((len(codes), chunk - codes.shape[1]), PADDING)
        return CodedMedia(ACTION, torch.cat([codes, missing], 1), self.fingerprint)


class ActionCodec:
    """An action space as codecs of media are."""

    def __init__(self, rules: ActionRules) -> None:
        self.rules = rules

    def encode(self, media: Sequence[Actions]) -> list[Tensor]:
        """Returns the codes of each, `(books, steps)`."""
        return [self.rules.space.encode(actions) for actions in media]

    def decode(self, codes: Tensor) -> Actions:
        """Returns what codes `(books, steps)` stand for, numbers as the environment takes them."""
        return self.rules.space.decode(codes, self.rules.space.dataset)


@dataclass(frozen=True)
class ActionTokens(KindOfCodes):
    """The tokens of actions: steps one after the other, of each the number of every dimension."""

    def written(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """As of media; steps behind the last one of a row repeat it, and are nothing that was chosen."""
        behind = codes == PADDING
        last = codes[:, int((~behind[0]).sum()) - 1]
        ids, free = super().written(torch.where(behind, last[:, None], codes))
        return ids, free & self.told(codes, len(ids))

    def told(self, codes: Tensor, length: int) -> Tensor:
        """All but those of the steps that there were not."""
        return (codes != PADDING).movedim(0, -1).flatten()


def action_codes(space: ActionSpace, other: MediaCodes | None = None) -> MediaCodes:
    """Returns the codes of a space whose `first_ids` are known, beside those of media that a model has."""
    rules = ActionRules(Path(), ACTION, space.books, digest(space.to_json()), space=space)
    tail = space.tokens == 'tail'
    at_once = space.decoding == 'parallel'
    tokens = ActionTokens(ACTION, space.books, space.first_ids, size=(space.chunk,), in_text=tail, parallel=at_once)
    if other is None:
        return MediaCodes({ACTION: tokens}, {ACTION: rules})
    return replace(other, kinds={**other.kinds, ACTION: tokens}, rules={**other.rules, ACTION: rules})


def at_the_tail(space: ActionSpace, tokenizer: Any) -> ActionSpace:
    """Returns the space with its codes at the last ids of the text vocabulary, as OpenVLA has them.

    Those are the ids that the tokenizer had before tokens were added to it, however many rows an embedding was padded
    to. Raises ModelError where they are special tokens, which have a meaning, or the vocabulary is smaller.
    """
    size, stop = max(space.books), tokenizer.vocab_size
    first = stop - size
    special = sorted({*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder} & {*range(max(first, 0), stop)})
    if first <= 0 or special:
        what = f'among them {tokenizer.convert_ids_to_tokens(special[0])!r}' if special else f'of {stop}'
        raise ModelError(
            f'the last {size} ids of the text vocabulary cannot stand for actions, {what}: give the model reserved '
            'tokens, with align-anything add-action-tokens.'
        )
    return replace(space, tokens='tail', first_ids=(first,) * len(space.books))


def spoken(conversations: Sequence[Conversation], space: ActionSpace) -> list[Conversation]:
    """Returns conversations with actions as words, where the space has them so; else as they are.

    Raises SampleError for actions that are not of the space.
    """
    if space.tokens != 'words':
        return list(conversations)

    def part_of(part: dict[str, Any]) -> dict[str, Any]:
        if part['type'] != ACTION:
            return part
        space.indices(part[ACTION])
        return {'type': 'text', 'text': ', '.join(part[ACTION].names)}

    return [
        [{**message, 'content': [part_of(part) for part in message['content']]} for message in conversation]
        for conversation in conversations
    ]


def from_words(text: str, space: ActionSpace) -> Actions | None:
    """Returns the actions that a text names, None for any other text."""
    names = tuple(name.strip() for name in text.strip().split(','))
    return Actions(names=names) if all(name in space.names for name in names) else None
