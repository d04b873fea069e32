"""What the models of a run say of each unit of a rollout before its updates, each response on a rank that has time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from align_anything.algorithms.online import Online
from align_anything.core.types import COMPANION, Example, Need, Response, Scored
from align_anything.policies.base import Collator
from align_anything.rollouts.experience import Scorer, record, responses_of
from align_anything.trainers.loops.splitting import Exchange


@dataclass(frozen=True)
class Scoring:
    """One model that scores.

    Attributes:
        name: what its scores are called among the per-unit values of a response.
        scorer, collate, device: as `record` takes them.
        within: what is in force while it scores.
    """

    name: str
    scorer: Scorer
    collate: Collator
    device: torch.device
    within: Callable[[], AbstractContextManager[Any]] = nullcontext


def asking(role: str, scorer: Callable[..., Scored], algorithm: Online, meets: Need) -> Scorer:
    """Returns a scorer that says what it predicts too, where policies that meet so much do and the loss reads it."""
    reads = role in algorithm.companions and meets == 'transition'
    return partial(scorer, prediction=True) if reads else scorer


def score(
    examples: Sequence[Example],
    micro_batches: Sequence[list[Example]],
    exchange: Exchange,
    scorings: Sequence[Scoring],
) -> dict[str, Tensor]:
    """Writes all scores into the responses of `examples`, whichever rank computed them. Every rank calls it.

    Args:
        examples: the rank's own.
        micro_batches: of what it computes instead, by `exchange`.
        exchange: brings the scores back.
        scorings: in the order in which they are asked.

    Returns:
        The bootstrap values of the responses of `examples`, `(R,)`, by the name of each scoring that says such.
    """
    computed = list(responses_of(exchange.examples))
    bootstraps: list[dict[str, float]] = [{} for _ in computed]
    said = []
    for own in scorings:
        with own.within():
            found = record(own.name, own.scorer, own.collate, micro_batches, own.device)
        if found is not None:
            said.append(own.name)
            for values, value in zip(bootstraps, found.tolist(), strict=True):
                values[own.name] = value
    names = [own.name for own in scorings]
    back = exchange.back([(*_scores(one, names), values) for one, values in zip(computed, bootstraps, strict=True)])
    for response, (per_unit, predictions, _) in zip(responses_of(examples), back, strict=True):
        response.per_unit.update(per_unit)
        response.media.update(predictions)
    return {name: torch.tensor([values[name] for *_, values in back], dtype=torch.float32) for name in said}


def _scores(response: Response, names: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    predictions = (f'{COMPANION}{name}' for name in names)
    return (
        {name: response.per_unit[name] for name in names},
        {name: response.media[name] for name in predictions if name in response.media},
    )
