"""Responses of a rollout as what rewards are given."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from align_anything.core.types import Example
from align_anything.rewards.base import Completion
from align_anything.rollouts.base import Response


def completions_of(
    examples: Sequence[Example], responses: Sequence[Sequence[Response]], decode: Callable[[Tensor], str]
) -> list[Completion]:
    """What rewards are given of each response, all of a prompt's behind each other."""
    return [
        Completion(
            conversation=example.conversation or [],
            response=decode(response.ids),
            meta=example.meta,
            length=len(response.ids),
            finished=response.finished,
            source=example.source,
        )
        for example, drawn in zip(examples, responses, strict=True)
        for response in drawn
    ]
