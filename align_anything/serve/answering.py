"""What the server asks of whatever answers: a small contract, met by a checkpoint (`checkpoint.py`) and by tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from align_anything.core.types import Conversation, MediaKind, Response
from align_anything.rollouts.base import Tell


@dataclass(frozen=True)
class Wish:
    """How responses are to be sampled; None is what the server or its model says. Equal wishes can be met together.

    Attributes:
        responses: how many.
        max_new_tokens, temperature, top_p, top_k, repetition_penalty, stop: as `Sampling` has them; of text.
        steps, guidance_scale: as a denoiser has them.
        only: the one kind of media that a response shall be; None for whatever the model answers with.
    """

    responses: int = 1
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    stop: tuple[str, ...] = ()
    steps: int | None = None
    guidance_scale: float | None = None
    only: MediaKind | None = None


@dataclass(frozen=True)
class Prompt:
    """A conversation as the model reads it.

    Attributes:
        content: what the answerer made of it, its own affair.
        length: its tokens; 0 where there are none.
    """

    content: Any
    length: int


class CallReader(Protocol):
    """Finds the tool calls in the text of an answer, see `tool_calls.py`."""

    def split(self, text: str) -> tuple[str, list[dict[str, Any]]]: ...

    def holds_back(self, text: str) -> int: ...


class Answerer(Protocol):
    """A model that answers.

    Attributes:
        reads, emits: kinds of media that it takes and writes, text aside.
        writes_text: whether its answers hold text.
    """

    reads: frozenset[MediaKind]
    emits: frozenset[MediaKind]
    writes_text: bool

    def check(self, wish: Wish) -> None:
        """Raises SettingsError for a wish that this model cannot obey."""
        ...

    def prepare(self, conversation: Conversation, wish: Wish) -> Prompt:
        """Returns a conversation, media decoded, as the model reads it; from any thread.

        Raises SampleError for one that it cannot read, or that leaves no room for an answer.
        """
        ...

    def generate(
        self, prompts: Sequence[Prompt], wish: Wish, seeds: Sequence[int], tell: Tell
    ) -> list[list[Response]]:
        """Returns the responses to each prompt, sampled by the seed of each; from one thread at a time.

        `tell` is told what they say as they grow, and ends those for which it returns True.
        """
        ...

    def calls(self) -> CallReader | None:
        """What reads the tool calls in its answers; None where its template writes none, or in no known form."""
        ...
