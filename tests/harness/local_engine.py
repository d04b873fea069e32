"""A single-process engine without DeepSpeed: the oracle that tests compare every other engine with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from align_anything.core.types import Batch, Scored
from align_anything.engines.optim import clip_and_norm, complete_gradients
from align_anything.engines.step import (
    Objective,
    StepResult,
    asked_of,
    global_counts,
    global_estimates,
    run_step,
    with_roles,
)


class LocalEngine:
    """Trains one module with a plain torch optimizer in this process."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
        max_grad_norm: float = 0.0,
    ) -> None:
        self.module = module
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.max_grad_norm = max_grad_norm
        self.grad_norm = 0.0

    def score(self, batch: Batch, **asked: bool) -> Scored:
        """Scores a batch with the trained module; keeps the graph when gradients are enabled."""
        return self.module(batch, **asked)

    def train_step(
        self,
        micro_batches: Sequence[Batch],
        algorithm: Objective,
        roles: Mapping[str, Callable[[Batch], Scored]] | None = None,
        extras: Mapping[str, float] | None = None,
    ) -> StepResult:
        """One optimizer step; see `DeepSpeedEngine.train_step`."""
        score = with_roles(partial(self.score, **asked_of(algorithm)), roles or {})
        counts, summed = global_counts(micro_batches, algorithm, extras or {}, _identity)
        estimates = global_estimates(micro_batches, algorithm, score=score, reduce_sum=_identity)
        self.optimizer.zero_grad()
        result = run_step(
            micro_batches,
            algorithm,
            counts,
            estimates,
            score=score,
            backward=_backward,
            world_size=1,
            reduce_sum=_identity,
        )
        result.extras = summed
        result.applied = result.finite and any(counts.values())
        if result.applied:
            complete_gradients(self.module.parameters())
            self.grad_norm = float(clip_and_norm(self.module.parameters(), self.max_grad_norm))
            self.optimizer.step()
            if self.scheduler is not None:
                self.scheduler.step()
        return result

    def evaluate(
        self,
        batches: Callable[[], Iterable[Batch]],
        algorithm: Objective,
        roles: Mapping[str, Callable[[Batch], Scored]] | None = None,
    ) -> StepResult:
        """Loss terms over all batches, divided by their counts; no gradients."""
        score = with_roles(partial(self.score, **asked_of(algorithm)), roles or {})
        micro_batches = list(batches())
        counts, _ = global_counts(micro_batches, algorithm, {}, _identity)
        with torch.no_grad():
            return run_step(
                micro_batches,
                algorithm,
                counts,
                global_estimates(micro_batches, algorithm, score=score, reduce_sum=_identity),
                score=score,
                backward=None,
                world_size=1,
                reduce_sum=_identity,
            )


def _backward(loss: Tensor, last: bool) -> None:
    # Rows without media reach nothing where only a tower trains: their gradient is zero.
    if loss.requires_grad:
        loss.backward()


def _identity(tensor: Tensor) -> Tensor:
    return tensor
