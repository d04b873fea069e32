"""Responses of a rollout as what rewards are given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from align_anything.core.types import Example
from align_anything.models.family import FamilySpec
from align_anything.models.rendering import without_beginning
from align_anything.rewards.base import Completion, Values


def completions_of(examples: Sequence[Example], spec: FamilySpec) -> list[Completion]:
    """What rewards are given of each generated response, all of a prompt's behind each other."""
    return [
        Completion(
            conversation=asked,
            message=response.message,
            meta=example.meta,
            length=response.units,
            finished=response.finished,
            source=example.source,
            prefix=prefix,
            prefill=prefill,
        )
        for example in examples
        for asked in [without_beginning(example.conversation)]
        for prefix, prefill in [(spec.generation_prefix(example.conversation), spec.prefill(example.conversation))]
        for response in example.responses
    ]


def numbers(values: Values) -> Tensor:
    """What a reward gave to each response, `(R,)` float32; NaN where it abstained."""
    return torch.tensor([float('nan') if value is None else value for value in values], dtype=torch.float32)
