"""What every model family tells of itself: its rules, whatever its answers are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from align_anything.core.types import Conversation, Example, MediaKind, Need, Piece
from align_anything.models.rendering import TrainOn


class Spec(Protocol):
    """The rules of a family. It is pickled into data workers, so it never holds weights.

    Attributes:
        unit: what a unit of a response is: a `token` or a `denoising step`.
        model_type: the configuration's `model_type`.
        max_length: most units of a prompt and one response together.
        meets: what the score of a unit is, which decides what algorithms can train it.
        reads: kinds of media that may stand in a prompt, text aside.
        emits: kinds of media that the model can learn to write into an answer, text aside.
        components: parameter-name prefixes of each component of the model; the longest matching prefix decides.
    """

    unit: str
    model_type: str
    max_length: int
    meets: Need
    reads: frozenset[MediaKind]
    emits: frozenset[MediaKind]
    components: dict[str, list[str]]

    def encode(self, conversation: Conversation, train_on: TrainOn = 'all_assistant') -> Example:
        """Encodes a conversation whose media are decoded: a prompt, and as one response all that follows it.

        Raises SampleError for a row that cannot be used, such as one that trains an answer with media of a kind that
        the family does not emit.
        """
        ...

    def encode_group(
        self,
        conversations: Sequence[Conversation],
        train_on: TrainOn = 'all_assistant',
        start: int | None = None,
        judged: bool = False,
    ) -> Example:
        """Encodes conversations that share their first turns and differ in an answer: a prompt, a response for each.

        `start` is the number of the first turn that differs; None finds it. Answers that are `judged` are read, not
        learnt: they may be empty, and hold any media that the family reads. Raises SampleError as `encode` does.
        """
        ...

    def encode_prompt(self, messages: Conversation) -> Piece:
        """Encodes what generation starts from. Raises SampleError as `encode` does."""
        ...

    def decode(self, piece: Piece) -> list[dict[str, Any]]:
        """Returns a response as the parts that an assistant message holds, text and media in order."""
        ...
