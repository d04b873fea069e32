"""Responses of a rollout as Examples: generated, completed, and scored by unit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from align_anything.configs.online import COST
from align_anything.core.errors import TrainingError
from align_anything.core.types import COMPANION, Batch, Example, Response, Scored
from align_anything.losses.shaping import informative
from align_anything.policies.base import Collator

Scorer = Callable[[Batch], Scored]


@dataclass
class Rollout:
    """One rollout of this rank: its prompts with their responses, what each reward gave them, `(R,)`, and the total.

    A reward is NaN where it abstained. It is then no part of the total.
    """

    examples: list[Example]
    rewards: dict[str, Tensor]
    scores: Tensor

    @property
    def responses(self) -> list[Response]:
        """All responses in order."""
        return list(responses_of(self.examples))

    @property
    def judged(self) -> Tensor:
        """Of each response, whether any reward gave it a number, `(R,)` bool; a cost is none."""
        given = [~values.isnan() for name, values in self.rewards.items() if name != COST]
        return torch.stack(given).any(0)

    @property
    def groups(self) -> Tensor:
        """The number of the prompt of each response, `(R,)`."""
        sizes = self._sizes()
        return torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes, dtype=torch.long))

    @property
    def differing(self) -> list[bool]:
        """Of each prompt, whether the scores of its responses differ."""
        return [bool(group.all()) for group in informative(self.scores, self.groups).split(self._sizes())]

    def of(self, prompts: Sequence[int]) -> Rollout:
        """What belongs to these prompts, by number, in that order."""
        numbers = torch.arange(len(self.scores)).split(self._sizes())
        chosen = torch.cat([torch.zeros(0, dtype=torch.long), *(numbers[prompt] for prompt in prompts)])
        return Rollout(
            [self.examples[prompt] for prompt in prompts],
            {name: values[chosen] for name, values in self.rewards.items()},
            self.scores[chosen],
        )

    def with_more(self, other: Rollout) -> Rollout:
        """This and what was generated after it."""
        return Rollout(
            [*self.examples, *other.examples],
            {name: torch.cat([values, other.rewards[name]]) for name, values in self.rewards.items()},
            torch.cat([self.scores, other.scores]),
        )

    def only(self, kept: Tensor, fewest: int) -> Rollout:
        """The responses that are `kept`, `(R,)` bool, and of prompts with fewer than `fewest` of them none."""
        own = kept.split(self._sizes())
        stays = torch.cat([kept[:0], *(some if int(some.sum()) >= fewest else some & False for some in own)])
        examples = [
            replace(example, responses=[one for one, stay in zip(example.responses, some, strict=True) if stay])
            for example, some in zip(self.examples, stays.split(self._sizes()), strict=True)
        ]
        return Rollout(
            [example for example in examples if example.responses],
            {name: values[stays] for name, values in self.rewards.items()},
            self.scores[stays],
        )

    def _sizes(self) -> list[int]:
        return [len(example.responses) for example in self.examples]


def informative_first(rollout: Rollout, prompts: int) -> Rollout:
    """The first so many prompts whose responses differ in score, then as many of the first others as are missing.

    Dynamic sampling (DAPO: Yu et al., 2025, arXiv:2503.14476, section 3.2), which there samples until it has enough.
    """
    differing = rollout.differing
    ordered = sorted(range(len(differing)), key=lambda number: not differing[number])
    return rollout.of(ordered[:prompts])


def complete(examples: Sequence[Example], responses: Sequence[Sequence[Response]]) -> list[Example]:
    """The Examples with the responses that were generated for their prompts; episodes begin as their environment did.

    Raises TrainingError when an engine does not say one log-probability for each unit.
    """
    for example, generated in zip(examples, responses, strict=True):
        for response in generated:
            if 'rollout' in response.per_unit and len(response.per_unit['rollout']) != response.units:
                raise TrainingError(
                    f'{example.source}: the rollout engine gave {len(response.per_unit["rollout"])} log-probabilities '
                    f"(per_unit['rollout']) for {response.units} tokens with a weight; it must give one for each."
                )
    return [_completed(example, generated) for example, generated in zip(examples, responses, strict=True)]


def _completed(example: Example, generated: Sequence[Response]) -> Example:
    episode = generated[0].episode if generated else None
    if episode is None:
        return replace(example, responses=list(generated))
    return replace(example, responses=list(generated), prompt=episode.prompt, conversation=episode.asked)


def record(
    name: str, scorer: Scorer, collate: Collator, micro_batches: Sequence[list[Example]], device: torch.device
) -> Tensor | None:
    """Writes the score of each unit into the per-unit values of its response, under `name`.

    What the scorer predicted of each unit, if it says so, goes into the media of the response as `companion/<name>`.
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
        if scored.prediction is not None:
            predictions = batch.by_response(scored.prediction.cpu())
            for response, piece in zip(responses_of(examples), predictions, strict=False):
                response.media[f'{COMPANION}{name}'] = piece.clone()
        if scored.bootstrap is not None:
            number = sum(len(example.responses) for example in examples)
            bootstrap.append(scored.bootstrap.float().cpu()[:number])
    return torch.cat(bootstrap) if bootstrap else None


def responses_of(examples: Sequence[Example]) -> Iterator[Response]:
    """All responses in order."""
    return (response for example in examples for response in example.responses)


def kept_of(values: Sequence[Tensor], kept: Sequence[Sequence[int]]) -> Tensor:
    """Numbers of the responses to each prompt, `(R,)` each, of those that are kept, in one tensor."""
    return torch.cat([torch.zeros(0), *(own[list(numbers)] for own, numbers in zip(values, kept, strict=True))])


def joined(examples: Sequence[Example], name: str) -> Tensor:
    """The per-unit values of all responses under `name`, `(N,)`."""
    return torch.cat([torch.zeros(0), *(response.per_unit[name] for response in responses_of(examples))])


def spread(examples: Sequence[Example], name: str, values: Tensor) -> None:
    """Gives each response its share of the values of all units `(N,)`, under `name`."""
    responses = list(responses_of(examples))
    for response, piece in zip(responses, values.split([response.units for response in responses]), strict=True):
        response.per_unit[name] = piece.clone()
