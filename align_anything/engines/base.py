"""What the engines of training share: all of an optimizer step but how gradients are reduced and weights are stored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from align_anything.core.distributed import all_reduce_sum, is_main, world_size
from align_anything.core.errors import TrainingError
from align_anything.core.parameters import gathered
from align_anything.core.types import Batch, Scored
from align_anything.engines.balance import Balanced, global_shares
from align_anything.engines.step import (
    Objective,
    StepResult,
    asked_of,
    divided,
    global_counts,
    global_estimates,
    run_step,
    with_roles,
)
from align_anything.policies.base import Policy

Roles = Mapping[str, Callable[[Batch], Scored]]


class Engine(ABC):
    """Trains one policy on all ranks.

    Attributes:
        device: what this rank computes on.
        partitioned: whether each rank holds only a share of the weights between steps.
        in_force: what shares the work among ranks, in words.
    """

    device: torch.device
    partitioned: bool
    in_force: str

    def __init__(self, router_coefficient: float, copies: int) -> None:
        """`router_coefficient` weighs the router loss in each step, 0 leaves it out.

        Of each `copies` ranks in a row all have the same micro-batches, and each computes a share of them.
        """
        self._router_coefficient, self._copies = router_coefficient, copies

    @property
    @abstractmethod
    def module(self) -> nn.Module:
        """What is called to score: the policy, with what the engine put around it."""

    @property
    @abstractmethod
    def policy(self) -> Policy:
        """What is trained, without what the engine put around it."""

    @property
    @abstractmethod
    def grad_norm(self) -> float:
        """Norm of the gradient before clipping, over all ranks, in the last step that was applied."""

    @property
    @abstractmethod
    def learning_rates(self) -> list[float]:
        """The rate in force of each parameter group."""

    @abstractmethod
    def save_state(self, folder: Path) -> None:
        """Writes weights, masters, optimizer and schedule for an exact resume. Every rank calls it."""

    @abstractmethod
    def wrote(self, folder: Path) -> bool:
        """Whether the state in `folder` is one of this engine, and not of the other."""

    @abstractmethod
    def load_state(self, folder: Path, scratch: Path | None = None) -> None:
        """Restores what `save_state` wrote. Frozen parameters come from the base checkpoint. Every rank calls it.

        With `scratch`, a folder for as long, the state may be one that another number of ranks, or another engine,
        wrote.
        """

    @abstractmethod
    def gathered_weights(self) -> AbstractContextManager[None]:
        """Gathers all weights on each rank, so that calls of the model need no collectives.

        Every rank enters and leaves it; in between they may call the model as differently as they like, without
        gradients.
        """

    @abstractmethod
    def share_of(self, parameter: nn.Parameter) -> Tensor:
        """What this rank holds of a parameter, to be read, and within `writing` written."""

    @abstractmethod
    def share_in(self, parameter: nn.Parameter, tensor: Tensor) -> Tensor:
        """What this rank would hold if `tensor`, of the gathered shape, were the parameter."""

    @abstractmethod
    def joined(self, parameter: nn.Parameter, share: Tensor) -> Tensor:
        """The whole of what each rank holds such a share of. Every rank calls it."""

    @abstractmethod
    def writing(self) -> AbstractContextManager[None]:
        """Lets shares of parameters be written as long as it lasts. Every rank enters it."""

    @abstractmethod
    def _begin(self, last: bool) -> None:
        """Is told before each forward pass whether the step ends with the micro-batch, or takes its gradient at all."""

    @abstractmethod
    def _propagate(self, loss: Tensor) -> None:
        """Adds the gradient of `loss`; that of the last micro-batch makes it the mean over ranks."""

    @abstractmethod
    def _apply(self, finite: bool) -> bool:
        """Clips, steps, and forgets the gradient; returns whether the weights changed. `finite` is the loss."""

    @abstractmethod
    def _settle(self) -> None:
        """Is told after scores that no backward pass follows."""

    def score(self, batch: Batch, **asked: bool) -> Scored:
        """Scores a batch with the trained policy; keeps the graph when gradients are enabled.

        `asked` says what the policy returns beside the scores, see `Policy.__call__`.
        """
        return self.module(batch, **asked)

    def infer(self, batch: Batch, **asked: bool) -> Scored:
        """Scores a batch with the policy as it is, without a graph and without dropout."""
        training = self.module.training
        self.module.eval()
        with torch.no_grad():
            scored = self.score(batch, **asked)
        self.module.train(training)
        self._settle()
        return scored

    def check(self) -> None:
        """Lets the policy check itself, see `Policy.check`, and makes it ready to train. Every rank calls it."""
        self.policy.check(self.module, self.device)
        self.module.train()
        self._settle()

    def train_step(
        self,
        micro_batches: Sequence[Batch],
        algorithm: Objective,
        roles: Roles | None = None,
        extras: Mapping[str, float] | None = None,
    ) -> StepResult:
        """One optimizer step over this rank's micro-batches of the step.

        Args:
            micro_batches: equally many on every rank (some may be empty ones).
            algorithm: gives counts, term sums and coefficients.
            roles: further scorers, such as the `reference`, whose scores the algorithm reads as per-unit values.
            extras: numbers to be summed over ranks along the way.

        Returns:
            The result over all ranks. When the loss is not finite, or nothing is trained by any rank, the weights are
            untouched and `applied` is False.
        """
        scorer = with_roles(partial(self.score, **asked_of(algorithm)), roles or {})
        counts, summed = global_counts(micro_batches, algorithm, extras or {}, self._reduce)
        if not any(counts.values()):
            return StepResult({}, None, counts, summed, applied=False)
        estimates = self._estimates(micro_batches, algorithm, scorer)
        if self._router_coefficient:
            algorithm = Balanced(algorithm, self._router_coefficient, self._shares(micro_batches))
            scorer = with_roles(partial(self.score, **asked_of(algorithm)), roles or {})
            counts, _ = global_counts(micro_batches, algorithm, {}, self._reduce)
        self.module.train()
        remaining = len(micro_batches)

        def score(batch: Batch) -> Scored:
            nonlocal remaining
            remaining -= 1
            self._begin(remaining == 0)
            return scorer(batch)

        result = run_step(
            micro_batches,
            algorithm,
            counts,
            estimates,
            score=score,
            backward=self._backward,
            world_size=world_size(),
            reduce_sum=self._reduce,
            device=self.device,
        )
        result.extras = summed
        result.applied = self._apply(result.finite)
        if not result.finite and result.applied:
            raise TrainingError('a non-finite loss reached the weights; the last checkpoint is the last good state.')
        return result

    def evaluate(
        self, batches: Callable[[], Iterable[Batch]], algorithm: Objective, roles: Roles | None = None
    ) -> StepResult:
        """Loss terms over every rank's batches, divided by their global counts.

        `batches` gives equally many on every rank, and the same ones each time it is called.
        """
        scorer = with_roles(partial(self.score, **asked_of(algorithm)), roles or {})
        estimates = self._estimates(batches(), algorithm, scorer)
        self.module.eval()
        iterator = iter(batches())
        sums: dict[str, float] = {}
        counts: dict[str, float] = {}
        with torch.no_grad():
            while micro_batches := list(islice(iterator, 8)):
                chunk_counts, _ = global_counts(micro_batches, algorithm, {}, self._reduce)
                chunk = run_step(
                    micro_batches,
                    algorithm,
                    dict.fromkeys(chunk_counts, 1.0),
                    estimates,
                    score=scorer,
                    backward=None,
                    world_size=world_size(),
                    reduce_sum=self._reduce,
                    device=self.device,
                )
                for name in chunk_counts:
                    sums[name] = sums.get(name, 0.0) + chunk.terms[name]
                    counts[name] = counts.get(name, 0.0) + chunk_counts[name]
        self.module.train()
        self._settle()
        return divided(sums, counts, algorithm.coefficients())

    def gathered(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The whole of some tensors of the policy, as they are saved. Every rank calls it with the same ones."""
        return {name: self._as_saved(tensor, gathered(tensor)) for name, tensor in tensors.items()}

    def full_state_dict(self, module: nn.Module) -> dict[str, Tensor] | None:
        """The gathered tensors of `module` on the CPU, on the main rank; None elsewhere. Every rank calls it.

        A parameter that stands under two names (tied embeddings) is one tensor under both.
        """
        found: dict[int, Tensor] = {}
        live = module.state_dict(keep_vars=True)
        for name, tensor in {id(tensor): (name, tensor) for name, tensor in live.items()}.values():
            whole = self.gathered({name: tensor})[name]
            if is_main():
                found[id(tensor)] = whole.to('cpu', copy=True)
        return {name: found[id(tensor)] for name, tensor in live.items()} if is_main() else None

    def _as_saved(self, tensor: Tensor, whole: Tensor) -> Tensor:
        """Turns the whole of a tensor into what is saved of it."""
        return whole

    def _backward(self, loss: Tensor, last: bool) -> None:
        if not loss.requires_grad:
            raise TrainingError(
                'the scores of a micro-batch depend on no weight that trains. What its policy collates must reach one, '
                'whatever the rows hold (align_anything/policies/base.py).'
            )
        self._propagate(loss)

    def _estimates(
        self, batches: Iterable[Batch], algorithm: Objective, score: Callable[[Batch], Scored]
    ) -> dict[str, float]:
        self.module.eval()
        self._begin(False)
        return global_estimates(
            batches,
            algorithm,
            score=score,
            reduce_sum=self._reduce,
            device=self.device,
        )

    def _shares(self, micro_batches: Sequence[Batch]) -> Tensor:
        # Without dropout and the noise of routers, so that the same step has the same shares.
        self.module.eval()
        self._begin(False)
        return global_shares(
            micro_batches, lambda batch: self.score(batch.to(self.device), routing=True), self._reduce
        ).to(self.device)

    def _reduce(self, tensor: Tensor) -> Tensor:
        return all_reduce_sum(tensor.to(self.device)) / self._copies


Optimizer = Callable[[nn.Module], torch.optim.Optimizer]
Schedule = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]
EngineConfig = Mapping[str, Any]
"""As `trainers.runs.settings.engine_config` makes it."""
