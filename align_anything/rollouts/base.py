"""What every rollout engine is: prompts in, responses as token ids out. Text is never decoded and encoded again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from align_anything.core.types import Example


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn.

    Attributes:
        responses: how many to each prompt.
        max_new_tokens: tokens at which a response is cut.
        temperature: what the logits are divided by; 0 takes the likeliest token.
        top_p: share of the probability that the likeliest tokens to draw from must hold.
        top_k: number of tokens to draw from, 0 for all.
        repetition_penalty: what divides the logits of tokens that are there already, 1 for nothing.
        seed: of the draws.
    """

    responses: int = 1
    max_new_tokens: int = 512
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Response:
    """One response to a prompt.

    Attributes:
        ids: its tokens, the one that ended it included, and nothing after it, `(length,)` int64.
        logprobs: log-probability of each token under the distribution it was drawn from, before top-p and top-k,
            `(length,)` float32.
        finished: whether the model ended it; else it was cut at the limit.
        version: number of updates that the policy had seen.
    """

    ids: Tensor
    logprobs: Tensor
    finished: bool
    version: int


class RolloutEngine(Protocol):
    """Generates with the weights that it was given last. Every rank has one and makes the same calls."""

    def generate(self, examples: Sequence[Example], sampling: Sampling) -> list[list[Response]]:
        """Returns `sampling.responses` responses to the prompt of each Example."""
        ...

    def sync(self, version: int) -> None:
        """Takes the present weights of the policy, which has seen `version` updates."""
        ...

    def sleep(self) -> None:
        """Gives back what memory it can do without until the next `sync`."""
        ...


def end_of(ids: Sequence[int], stops: Sequence[int]) -> int | None:
    """Returns how many of `ids` there are up to the first one among `stops`, that one included; None without one."""
    return next((number for number, token in enumerate(ids, 1) if token in stops), None)
