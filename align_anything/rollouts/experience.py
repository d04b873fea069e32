"""Responses of a rollout as Examples: drawn, completed, and scored by token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from align_anything.core.types import Batch, Example, Piece, Scored
from align_anything.losses.shaping import informative
from align_anything.policies.base import Collator
from align_anything.rollouts.base import Response

Scorer = Callable[[Batch], Scored]


@dataclass
class Drawn:
    """One rollout of this rank: its prompts with responses, what each reward gave them, `(R,)` each, and the total."""

    examples: list[Example]
    responses: list[list[Response]]
    rewards: dict[str, Tensor]
    scores: Tensor

    @property
    def all_responses(self) -> list[Response]:
        return [response for drawn in self.responses for response in drawn]

    @property
    def differing(self) -> list[bool]:
        """Of each prompt, whether the scores of its responses differ."""
        sizes = [len(drawn) for drawn in self.responses]
        groups = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes, dtype=torch.long))
        return [bool(part.all()) for part in informative(self.scores, groups).split(sizes)]

    def of(self, prompts: Sequence[int]) -> Drawn:
        """The part that belongs to these prompts, by number, in that order."""
        numbers = torch.arange(len(self.scores)).split([len(drawn) for drawn in self.responses])
        chosen = torch.cat([torch.zeros(0, dtype=torch.long), *(numbers[prompt] for prompt in prompts)])
        return Drawn(
            [self.examples[prompt] for prompt in prompts],
            [self.responses[prompt] for prompt in prompts],
            {name: values[chosen] for name, values in self.rewards.items()},
            self.scores[chosen],
        )

    def with_more(self, other: Drawn) -> Drawn:
        """This and what was drawn after it."""
        return Drawn(
            [*self.examples, *other.examples],
            [*self.responses, *other.responses],
            {name: torch.cat([values, other.rewards[name]]) for name, values in self.rewards.items()},
            torch.cat([self.scores, other.scores]),
        )


def most_telling(drawn: Drawn, prompts: int) -> Drawn:
    """The first so many prompts whose responses differ in score, then the first others, as many as there is room for.

    Dynamic sampling (DAPO: Yu et al., 2025, arXiv:2503.14476, section 3.2), which there draws until it has enough.
    """
    differing = drawn.differing
    ordered = sorted(range(len(differing)), key=lambda number: not differing[number])
    return drawn.of(ordered[:prompts])


def complete(examples: Sequence[Example], responses: Sequence[Sequence[Response]]) -> list[Example]:
    """The Examples with the responses that were drawn to their prompts, every token of which counts."""
    return [
        replace(
            example,
            responses=[
                Piece(response.ids, torch.ones(len(response.ids)), per_unit={'rollout': response.logprobs})
                for response in drawn
            ],
        )
        for example, drawn in zip(examples, responses, strict=True)
    ]


def record(
    name: str, scorer: Scorer, collate: Collator, micro_batches: Sequence[list[Example]], device: torch.device
) -> Tensor | None:
    """Writes the score of each unit into the per-unit values of its response, under `name`.

    Returns the bootstrap values of all responses, `(R,)`, if the scorer gives such.
    """
    bootstrap: list[Tensor] = []
    for examples in micro_batches:
        batch = collate(examples)
        scored = scorer(batch.to(device))
        # An empty micro-batch has a response of nobody.
        pieces = batch.by_response(scored.values.float().cpu())
        for response, piece in zip(responses_of(examples), pieces, strict=False):
            response.per_unit[name] = piece.clone()
        if scored.bootstrap is not None:
            number = sum(len(example.responses) for example in examples)
            bootstrap.append(scored.bootstrap.float().cpu()[:number])
    return torch.cat(bootstrap) if bootstrap else None


def responses_of(examples: Sequence[Example]) -> Iterator[Piece]:
    """All responses in order."""
    return (response for example in examples for response in example.responses)


def joined(examples: Sequence[Example], name: str) -> Tensor:
    """The per-unit values of all responses under `name`, `(N,)`."""
    return torch.cat([torch.zeros(0), *(response.per_unit[name] for response in responses_of(examples))])


def spread(examples: Sequence[Example], name: str, values: Tensor) -> None:
    """Gives each response its part of the values of all units `(N,)`, under `name`."""
    responses = list(responses_of(examples))
    for response, piece in zip(responses, values.split([len(response) for response in responses]), strict=True):
        response.per_unit[name] = piece.clone()
