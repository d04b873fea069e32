"""Responses of a rollout as what rewards are given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from align_anything.core.types import Example, Response
from align_anything.models.family import FamilySpec
from align_anything.models.rendering import without_beginning
from align_anything.rewards.base import Completion, Values


def completions_of(examples: Sequence[Example], spec: FamilySpec) -> list[Completion]:
    """What rewards are given of each generated response, all of a prompt's behind each other."""
    return [completion for example in examples for completion in _completions(example, spec)]


def _completions(example: Example, spec: FamilySpec) -> list[Completion]:
    asked = without_beginning(example.conversation)
    # By whether a response is the first turn behind the prompt.
    begins = {
        first: (spec.generation_prefix(messages), spec.prefill(messages))
        for first in {len(_turns(response)) < 2 for response in example.responses}
        for messages in [example.conversation if first else asked]
    }
    made = []
    for response in example.responses:
        turns, episode = _turns(response), response.episode
        prefix, prefill = begins[len(turns) < 2]
        at = 0 if episode is None else episode.last_answer
        made.append(
            Completion(
                conversation=[*asked, *episode.messages[:at]] if at else asked,
                message=response.message if episode is None else episode.messages[at],
                meta=example.meta,
                length=response.units,
                finished=response.finished,
                source=example.source,
                prefix=prefix,
                prefill=prefill,
                episode=episode,
            )
        )
    return made


def _turns(response: Response) -> Sequence[object]:
    return () if response.episode is None else response.episode.turns


def numbers(values: Values) -> Tensor:
    """What a reward gave to each response, `(R,)` float32; NaN where it abstained."""
    return torch.tensor([float('nan') if value is None else value for value in values], dtype=torch.float32)
