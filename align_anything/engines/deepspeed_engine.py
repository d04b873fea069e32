"""DeepSpeed around one module: wrap, step, evaluate, save and restore."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from align_anything.core.distributed import all_reduce_sum, is_main, world_size
from align_anything.core.errors import SettingsError, TrainingError
from align_anything.core.parameters import is_partitioned
from align_anything.core.types import Batch, Scored
from align_anything.engines.balance import Balanced, global_shares
from align_anything.engines.deepspeed_config import zero_stage
from align_anything.engines.optim import clip_and_norm, complete_gradients
from align_anything.engines.process_group import give_dimensions, join_process_group
from align_anything.engines.release import remember
from align_anything.engines.reshape import is_partitioned_state, reshaped
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

STATE_TAG = 'deepspeed'


class DeepSpeedEngine:
    """Trains one policy under ZeRO 0 to 3.

    It drives DeepSpeed's accumulation boundary itself and never lets it divide a loss: the loss that arrives is
    already the share of this micro-batch in the objective of the whole step.
    """

    def __init__(
        self,
        module: nn.Module,
        config: Mapping[str, Any],
        optimizer: torch.optim.Optimizer,
        make_schedule: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler],
        router_coefficient: float = 0.0,
        copies: int = 1,
    ) -> None:
        """Wraps `module`, a policy.

        `router_coefficient` weighs the router loss in each step, 0 leaves it out. Of each `copies` ranks in a row all
        have the same micro-batches, and each computes a share of them.
        """
        import deepspeed

        join_process_group()
        self.stage = zero_stage(config)
        self.max_grad_norm = float(config.get('gradient_clipping', 0.0))
        give_dimensions(module)
        self.engine, *_ = deepspeed.initialize(
            model=module, optimizer=optimizer, lr_scheduler=make_schedule, config=dict(config), dist_init_required=False
        )
        remember(self.engine)
        if self.engine.zero_optimization_stage() != self.stage:
            raise SettingsError(
                [f'asked for ZeRO stage {self.stage}, DeepSpeed runs {self.engine.zero_optimization_stage()}.']
            )
        self.device = self.engine.device
        # Without ZeRO and in float32, DeepSpeed clips but keeps no norm and looks for no overflow: that is done here.
        self._plain = self.stage == 0 and not (self.engine.bfloat16_enabled() or self.engine.fp16_enabled())
        self._plain_norm = float('nan')
        if self.stage == 0 and world_size() == 1:
            # DeepSpeed would copy all gradients into one tensor and back, and ask nobody in between.
            self.engine.enable_backward_allreduce = False
        self._router_coefficient, self._copies = router_coefficient, copies

    @property
    def policy(self) -> Policy:
        """What is trained, without what DeepSpeed put around it."""
        return self.engine.module

    @property
    def grad_norm(self) -> float:
        """Norm of the gradient before clipping, over all ranks, in the last step that was applied."""
        norm = self._plain_norm if self._plain else self.engine.get_global_grad_norm()
        return float(norm) if norm is not None else float('nan')

    @property
    def learning_rates(self) -> list[float]:
        """The rate in force of each parameter group."""
        return [float(rate) for rate in self.engine.get_lr()]

    def score(self, batch: Batch, **asked: bool) -> Scored:
        """Scores a batch with the trained policy; keeps the graph when gradients are enabled.

        `asked` says what the policy returns beside the scores, see `Policy.__call__`.
        """
        return self.engine(batch, **asked)

    def infer(self, batch: Batch, **asked: bool) -> Scored:
        """Scores a batch with the policy as it is, without a graph and without dropout."""
        training = self.engine.training
        self.engine.eval()
        with torch.no_grad():
            scored = self.score(batch, **asked)
        self.engine.train(training)
        return scored

    def train_step(
        self,
        micro_batches: Sequence[Batch],
        algorithm: Objective,
        roles: Mapping[str, Callable[[Batch], Scored]] | None = None,
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
        self.engine.train()
        remaining = len(micro_batches)

        def score(batch: Batch) -> Scored:
            nonlocal remaining
            remaining -= 1
            # ZeRO reads the boundary in the forward pass as well.
            self.engine.set_gradient_accumulation_boundary(remaining == 0)
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
        if self._plain:
            complete_gradients(self.policy.parameters())
            self._plain_norm = float(clip_and_norm(self.policy.parameters(), self.max_grad_norm))
            if not math.isfinite(self._plain_norm):
                self.engine.zero_grad()
                result.applied = False
                return result
        with record_function('optimizer'):
            self.engine.step()
        result.applied = self.engine.was_step_applied()
        if not result.finite and result.applied:
            raise TrainingError('a non-finite loss reached the weights; the last checkpoint is the last good state.')
        return result

    def _backward(self, loss: Tensor, last: bool) -> None:
        if not loss.requires_grad:
            raise TrainingError(
                'the scores of a micro-batch depend on no weight that trains. What its policy collates must reach one, '
                'whatever the rows hold (align_anything/policies/base.py).'
            )
        self.engine.backward(loss, scale_wrt_gas=False)

    def evaluate(
        self,
        batches: Callable[[], Iterable[Batch]],
        algorithm: Objective,
        roles: Mapping[str, Callable[[Batch], Scored]] | None = None,
    ) -> StepResult:
        """Loss terms over every rank's batches, divided by their global counts.

        `batches` gives equally many on every rank, and the same ones each time it is called.
        """
        scorer = with_roles(partial(self.score, **asked_of(algorithm)), roles or {})
        estimates = self._estimates(batches(), algorithm, scorer)
        self.engine.eval()
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
        self.engine.train()
        return divided(sums, counts, algorithm.coefficients())

    def _estimates(
        self, batches: Iterable[Batch], algorithm: Objective, score: Callable[[Batch], Scored]
    ) -> dict[str, float]:
        self.engine.eval()
        self.engine.set_gradient_accumulation_boundary(False)
        return global_estimates(
            batches,
            algorithm,
            score=score,
            reduce_sum=self._reduce,
            device=self.device,
        )

    def _shares(self, micro_batches: Sequence[Batch]) -> Tensor:
        # Without dropout and the noise of routers, so that the same step has the same shares.
        self.engine.eval()
        self.engine.set_gradient_accumulation_boundary(False)
        return global_shares(
            micro_batches, lambda batch: self.score(batch.to(self.device), routing=True), self._reduce
        ).to(self.device)

    def save_state(self, folder: Path) -> None:
        """Writes weights, masters, optimizer and schedule for an exact resume. Every rank calls it."""
        frozen = any(not parameter.requires_grad for parameter in self.policy.parameters())
        self.engine.save_checkpoint(str(folder), tag=STATE_TAG, save_latest=False, exclude_frozen_parameters=frozen)

    def load_state(self, folder: Path, scratch: Path | None = None) -> None:
        """Restores what `save_state` wrote. Frozen parameters come from the base checkpoint. Every rank calls it.

        With `scratch`, a folder for as long, the state may be one that another number of ranks wrote.
        """
        if scratch is not None and is_partitioned_state(folder / STATE_TAG):
            with reshaped(folder / STATE_TAG, scratch) as made:
                self.engine._config.load_universal_checkpoint = True
                self._load(made.parent)
                self.engine._config.load_universal_checkpoint = False
        else:
            self._load(folder)

    def _load(self, folder: Path) -> None:
        frozen = any(not parameter.requires_grad for parameter in self.policy.parameters())
        path, _ = self.engine.load_checkpoint(str(folder), tag=STATE_TAG, load_module_strict=not frozen)
        if path is None:
            raise TrainingError(f'{folder} holds no DeepSpeed state that this run can load.')

    def full_state_dict(self, module: nn.Module) -> dict[str, Tensor] | None:
        """The gathered tensors of `module` on the CPU, on the main rank; None elsewhere. Every rank calls it.

        A parameter that stands under two names (tied embeddings) is one tensor under both.
        """
        import deepspeed

        gathered: dict[int, Tensor] = {}
        for parameter in module.parameters():
            context = deepspeed.zero.GatheredParameters([parameter]) if is_partitioned(parameter) else nullcontext()
            with context:
                if is_main():
                    gathered[id(parameter)] = parameter.detach().to('cpu', copy=True)
        if not is_main():
            return None
        live = module.state_dict(keep_vars=True)
        return {
            name: gathered[id(value)] if id(value) in gathered else value.detach().to('cpu', copy=True)
            for name, value in live.items()
        }

    def _reduce(self, tensor: Tensor) -> Tensor:
        return all_reduce_sum(tensor.to(self.device)) / self._copies
