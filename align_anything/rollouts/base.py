"""What every rollout engine is: prompts in, responses out. What was decoded is never encoded again."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from align_anything.core.types import Example, Piece, Response
from align_anything.models.family import FamilySpec


@dataclass(frozen=True)
class Sampling:
    """How responses are sampled.

    Attributes:
        responses: how many for each prompt.
        max_new_tokens: length limit of a response.
        temperature: divides the logits; 0 decodes greedily.
        top_p: nucleus sampling: probability mass of the tokens to sample from, 1 for all.
        top_k: number of most likely tokens to sample from, 0 for all.
        repetition_penalty: divides the logits of tokens that are there already, 1 for nothing.
        stop: stop strings: a response ends with the token that completes one of them.
        include_stop_str_in_output: whether its text keeps the stop string. Its token ids always do: they were sampled,
            and they are what is trained.
        seed: of the generator.
    """

    responses: int = 1
    max_new_tokens: int = 512
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    include_stop_str_in_output: bool = True
    seed: int = 0


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


def never_sampled(spec: FamilySpec) -> list[int]:
    """Returns the placeholders of media among the tokens that there are logits for; some families have theirs past it.

    A response is text, and no model reads a placeholder without a medium.
    """
    return sorted(token for token in spec.media_token_ids if token < spec.config.get_text_config().vocab_size)


def stop_string_end(spec: FamilySpec, ids: Sequence[int], stop: Sequence[str]) -> int | None:
    """Returns how many of `ids` there are up to the one that completes a stop string; None where none is complete."""

    def complete(number: int) -> bool:
        text = spec.text_of(ids[:number])
        return any(string in text for string in stop)

    return bisect_left(range(len(ids)), True, key=complete) if stop and complete(len(ids)) else None


def said(spec: FamilySpec, piece: Piece, sampling: Sampling) -> list[dict[str, Any]]:
    """Returns what a generated response says: all that was sampled, less its end and an excluded stop string."""
    parts = spec.decode(piece)
    if sampling.include_stop_str_in_output:
        return parts
    kept = []
    for part in parts:
        starts = [part['text'].find(string) for string in sampling.stop] if part['type'] == 'text' else []
        start = min((start for start in starts if start >= 0), default=None)
        if start is not None:
            return [*kept, {**part, 'text': part['text'][:start]}]
        kept.append(part)
    return kept


def sampled(
    spec: FamilySpec, ids: Sequence[int], logprobs: Sequence[float], version: int, sampling: Sampling
) -> Response:
    """Returns a generated response up to the first token that ends it, every token of which the policy chose."""
    end = end_of(ids, spec.stop_token_ids)
    stopped = stop_string_end(spec, ids[:end], sampling.stop)
    end = end if stopped is None else stopped
    length = len(ids) if end is None else end
    response = Response(
        ids=torch.tensor(ids[:length], dtype=torch.long),
        weights=torch.ones(length),
        per_unit={'rollout': torch.tensor(logprobs[:length], dtype=torch.float32)},
        finished=end is not None,
        version=version,
    )
    response.parts = said(spec, response, sampling)
    return response
