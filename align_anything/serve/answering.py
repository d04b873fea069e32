"""What the server asks of whatever answers: a small contract, met by a checkpoint (`checkpoint.py`) and by tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from align_anything.core.types import MediaKind, Message, Response
from align_anything.rollouts.base import Tell


@dataclass(frozen=True)
class Wish:
    """How responses are to be sampled; None is what the server or its model says. Equal wishes can be met together.

    Attributes:
        responses: how many.
        max_new_tokens, temperature, top_p, top_k, repetition_penalty, stop: as `Sampling` has them; of text.
        steps, guidance_scale: of media.
        kinds: what a response may hold, `text` and kinds of media, or the one kind that it shall be; None for whatever
            the model answers with.
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
    kinds: frozenset[str] | None = None


@dataclass(frozen=True)
class Prompt:
    """A conversation as the model reads it.

    Attributes:
        content: what the answerer made of it, its own affair.
        length: its tokens; 0 where there are none.
        wish: how it is answered, with what the model or the server says in place of None.
    """

    content: Any
    length: int
    wish: Wish


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

    def prepare(self, turns: Sequence[Message], tools: Sequence[Mapping[str, Any]], wish: Wish) -> Prompt:
        """Returns a conversation as the model reads it, given its turns and the tools that may be called.

        Every medium is the bytes of its file, or decoded. It takes as long as decoding does, and is called from any
        thread. Raises SettingsError for a wish that this model cannot obey, SampleError for a conversation that it
        cannot read, or that leaves no capacity for an answer.
        """
        ...

    def generate(self, prompts: Sequence[Prompt], seeds: Sequence[int], tell: Tell) -> list[list[Response]]:
        """Returns the responses to each prompt, all of one wish, sampled by the seed of each; from one thread alone.

        `tell` is told what they say as they grow, and ends those for which it returns True.
        """
        ...

    def calls(self) -> CallReader | None:
        """What reads the tool calls in its answers; None where its template writes none, or in no known form."""
        ...
