"""One optimizer step's worth of micro-batches: nothing else divides a loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.profiler import record_function

from align_anything.core.types import Batch, Scored


class Objective(Protocol):
    """What an engine needs of an algorithm; see `algorithms.base.Algorithm`."""

    estimates_first: bool
    with_entropy: bool
    with_routing: bool
    with_further: bool

    def counts(self, batch: Batch) -> dict[str, Tensor]: ...

    def terms(self, batch: Batch, scored: Scored, estimates: Mapping[str, float]) -> dict[str, Tensor]: ...

    def coefficients(self) -> dict[str, float]: ...

    def estimates(self, batch: Batch, scored: Scored) -> dict[str, tuple[Tensor, Tensor]]: ...


@dataclass
class StepResult:
    """What happened in one optimizer step, over all ranks.

    Attributes:
        terms: each loss term and each metric of the algorithm, divided by its global count. One that nothing was
            counted for is left out: it has no value.
        loss: the weighted sum of the terms, the objective that was stepped on; None where nothing was counted.
        counts: global count of each one's unit.
        extras: the caller's own numbers, summed over ranks.
        applied: whether the weights changed.
        suspects: on this rank, the sources of samples whose scores were not finite.
        coefficients: what the terms of the objective were weighed with.
    """

    terms: dict[str, float]
    loss: float | None
    counts: dict[str, float]
    extras: dict[str, float] = field(default_factory=dict)
    applied: bool = True
    suspects: list[str] = field(default_factory=list)
    coefficients: Mapping[str, float] = field(default_factory=dict)

    @property
    def finite(self) -> bool:
        return self.loss is None or math.isfinite(self.loss)

    @property
    def empty(self) -> bool:
        """Whether there was nothing to train on, for any rank."""
        return not any(self.counts.values())

    @property
    def numbers(self) -> dict[str, float]:
        """The loss and the terms by name, as far as there are any."""
        return {**({} if self.loss is None else {'loss': self.loss}), **self.terms}


ReduceSum = Callable[[Tensor], Tensor]
Score = Callable[[Batch], Scored]


def asked_of(algorithm: Objective) -> dict[str, bool]:
    """What the policy has to return beside its scores for the loss terms of `algorithm`."""
    more = {'routing': algorithm.with_routing, 'further': algorithm.with_further}
    return {'entropy': algorithm.with_entropy, **{name: True for name, asked in more.items() if asked}}


def with_roles(score: Score, roles: Mapping[str, Score]) -> Score:
    """Scores with the policy, after the scores of further `roles` have become per-unit values of the batch."""

    def scored(batch: Batch) -> Scored:
        for name, scorer in roles.items():
            batch.per_unit[name] = scorer(batch).values
        return score(batch)

    return scored


def divided(sums: Mapping[str, float], counts: Mapping[str, float], coefficients: Mapping[str, float]) -> StepResult:
    """The result of term sums over all ranks, given their global counts and what the objective weighs them with."""
    terms = {name: total / counts[name] for name, total in sums.items() if counts[name]}
    weighted = [weight * terms[name] for name, weight in coefficients.items() if name in terms]
    return StepResult(terms, sum(weighted) if weighted else None, dict(counts), coefficients=dict(coefficients))


def combined(results: Sequence[StepResult]) -> StepResult:
    """The result over all that several results are over. A step that had nothing to train on may have fewer terms."""
    names = dict.fromkeys(name for result in results for name in result.counts)
    counts = {name: sum(result.counts.get(name, 0.0) for result in results) for name in names}
    sums = {
        name: sum(result.terms[name] * result.counts[name] for result in results if name in result.terms)
        for name in names
    }
    coefficients = {name: weight for result in results for name, weight in result.coefficients.items()}
    return divided(sums, counts, coefficients)


def global_counts(
    micro_batches: Iterable[Batch], algorithm: Objective, extras: Mapping[str, float], reduce_sum: ReduceSum
) -> tuple[dict[str, float], dict[str, float]]:
    """Sums each term's count, and the extras, over the micro-batches and all ranks, in one collective."""
    local: dict[str, float] = {}
    for batch in micro_batches:
        for name, count in algorithm.counts(batch).items():
            local[name] = local.get(name, 0.0) + float(count)
    names = list(local)
    vector = torch.tensor([*local.values(), *extras.values()], dtype=torch.float64)
    values = reduce_sum(vector).tolist()
    return dict(zip(names, values, strict=False)), dict(zip(extras, values[len(names) :], strict=True))


def global_estimates(
    micro_batches: Iterable[Batch],
    algorithm: Objective,
    *,
    score: Score,
    reduce_sum: ReduceSum,
    device: torch.device | str = 'cpu',
) -> dict[str, float]:
    """What the algorithm estimates over the step and all ranks, before any gradient of it is taken.

    A batch without responses of other rows is scored itself and counted for nothing: every rank makes as many
    forward passes.
    """
    if not algorithm.estimates_first:
        return {}
    names: list[str] = []
    sums: list[Tensor] = []
    with torch.no_grad():
        for batch in micro_batches:
            counted = batch.unmatched is not None
            other = (batch.unmatched if counted else batch).to(device)
            found = algorithm.estimates(other, score(other))
            names = list(found)
            sums.append(counted * torch.stack([torch.stack(pair).double() for pair in found.values()]))
    totals = reduce_sum(torch.stack(sums).sum(0))
    return {name: float(total / max(count, 1.0)) for name, (total, count) in zip(names, totals.tolist(), strict=True)}


def run_step(
    micro_batches: Sequence[Batch],
    algorithm: Objective,
    counts: Mapping[str, float],
    estimates: Mapping[str, float],
    *,
    score: Score,
    backward: Callable[[Tensor, bool], None] | None,
    world_size: int,
    reduce_sum: ReduceSum,
    device: torch.device | str = 'cpu',
) -> StepResult:
    """Scores every micro-batch, and with `backward` accumulates the gradient of Σ coefficient · sum / global count.

    `backward(loss, last)` is called once per micro-batch. The loss carries a factor `world_size` because gradients
    are averaged over ranks, whereas the sums have to be added.
    """
    coefficients = algorithm.coefficients()
    totals: dict[str, Tensor] = {}
    seen: list[tuple[Batch, Tensor]] = []
    for number, batch in enumerate(micro_batches):
        batch = batch.to(device)
        with record_function('forward'):
            scored = score(batch)
            sums = algorithm.terms(batch, scored, estimates)
        if backward is not None:
            loss = sum(weight * sums[name] / max(counts[name], 1e-12) for name, weight in coefficients.items())
            with record_function('backward'):
                backward(loss * world_size, number == len(micro_batches) - 1)
        for name, value in sums.items():
            totals[name] = totals.get(name, 0.0) + value.detach().double()
        read = (scored.values, *batch.per_unit.values())
        seen.append((batch, torch.stack([torch.isfinite(values).all() for values in read]).all()))
    vector = torch.stack([torch.as_tensor(totals[name]).reshape(()) for name in counts])
    result = divided(dict(zip(counts, reduce_sum(vector).tolist(), strict=True)), counts, coefficients)
    if not result.finite:
        result.suspects = [source for batch, finite in seen if not bool(finite) for source in batch.sources]
    return result
