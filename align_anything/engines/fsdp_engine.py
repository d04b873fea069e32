"""FSDP2 around one module: shard, step, save and restore. Between steps each rank holds a share of every weight."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.profiler import record_function

from align_anything.core.parameters import is_sharded
from align_anything.engines.base import Engine, Optimizer, Schedule
from align_anything.engines.deepspeed_state import STATE_TAG, read_by_name
from align_anything.engines.fsdp_config import SECTION
from align_anything.engines.fsdp_state import is_fsdp_state, load_state, save_state, take_over
from align_anything.engines.optim import complete_gradients
from align_anything.engines.process_group import device_of_rank, give_dimensions, join_process_group
from align_anything.engines.sharding import PARAMETER_TYPES, let_go, shard, sharded_modules
from align_anything.policies.base import Policy


class FSDPEngine(Engine):
    """Trains one policy under FSDP2.

    What trains is kept in float32, of which a pass gathers copies in the precision of the run, as DeepSpeed keeps
    masters. Gradients are reduced once a step, in float32, behind the last micro-batch.
    """

    partitioned = True

    def __init__(
        self,
        module: nn.Module,
        config: Mapping[str, Any],
        make_optimizer: Optimizer,
        make_schedule: Schedule,
        router_coefficient: float = 0.0,
        copies: int = 1,
    ) -> None:
        """Shards `module`, a policy, before its optimizer is made; see `Engine` for the rest."""
        super().__init__(router_coefficient, copies)
        join_process_group()
        options = config[SECTION]
        self.device = device_of_rank()
        self.max_grad_norm = float(config['gradient_clipping'])
        self._reshards = options['reshard_after_forward']
        self._saved = PARAMETER_TYPES[options['precision']]
        give_dimensions(module)
        shard(module, options, self.device)
        self._policy = module
        self._trained = {name: own for name, own in module.named_parameters() if own.requires_grad}
        self.optimizer = make_optimizer(module)
        self.schedule = make_schedule(self.optimizer)
        self._norm = float('nan')
        kept = 'gathered once for both passes' if not self._reshards else 'gathered for each pass'
        self.in_force = f'FSDP2 over {len(sharded_modules(module)) - 1} layers, weights {kept}'
        self.in_force += ', kept on the CPU' if options['cpu_offload'] else ''

    @property
    def module(self) -> nn.Module:
        return self._policy

    @property
    def policy(self) -> Policy:
        return self._policy

    @property
    def grad_norm(self) -> float:
        return self._norm

    @property
    def learning_rates(self) -> list[float]:
        return [float(group['lr']) for group in self.optimizer.param_groups]

    def _begin(self, last: bool) -> None:
        self._policy.set_requires_gradient_sync(last)

    def _propagate(self, loss: Tensor) -> None:
        loss.backward()

    @torch.no_grad()
    def _apply(self, finite: bool) -> bool:
        # What no backward pass reached is still gathered.
        self._settle()
        complete_gradients(self._trained.values())
        gradients = [own.grad.to_local() for own in self._trained.values()]
        squares = torch.stack([gradient.float().norm().to(self.device) ** 2 for gradient in gradients]).sum()
        dist.all_reduce(squares)
        norm = float(squares.sqrt())
        applied = finite and math.isfinite(norm)
        if applied:
            self._norm = norm
            if 0 < self.max_grad_norm < norm:
                for gradient in gradients:
                    gradient.mul_(self.max_grad_norm / (norm + 1e-6))
            with record_function('optimizer'):
                self.optimizer.step()
            self.schedule.step()
        self.optimizer.zero_grad()
        return applied

    def _settle(self) -> None:
        let_go(self._policy)

    def save_state(self, folder: Path) -> None:
        save_state(folder, self._trained, self.optimizer, self.schedule)

    def load_state(self, folder: Path, scratch: Path | None = None) -> None:
        if self.wrote(folder):
            load_state(folder, self._trained, self.optimizer, self.schedule)
            return
        numbers = {id(parameter): name for name, parameter in self._trained.items()}
        names = [numbers[id(parameter)] for group in self.optimizer.param_groups for parameter in group['params']]
        with read_by_name(folder / STATE_TAG, scratch, names) as state:
            take_over(state, self._trained, self.optimizer, self.schedule, self.share_in)

    def wrote(self, folder: Path) -> bool:
        return is_fsdp_state(folder)

    @contextmanager
    def gathered_weights(self) -> Iterator[None]:
        modules = sharded_modules(self._policy)
        for module in modules:
            module.unshard()
            module.set_reshard_after_forward(False, recurse=False)
        try:
            yield
        finally:
            for module in modules:
                if module is not self._policy:
                    module.set_reshard_after_forward(self._reshards, recurse=False)
                module.reshard()

    def share_of(self, parameter: nn.Parameter) -> Tensor:
        return parameter.detach().to_local()

    def share_in(self, parameter: nn.Parameter, tensor: Tensor) -> Tensor:
        own: DTensor = parameter.detach()
        tensor = tensor.to(own.to_local().device)
        return distribute_tensor(tensor, own.device_mesh, own.placements, src_data_rank=None).to_local()

    def joined(self, parameter: nn.Parameter, share: Tensor) -> Tensor:
        own: DTensor = parameter.detach()
        place = {'shape': own.shape, 'stride': own.stride(), 'run_check': False}
        return DTensor.from_local(share, own.device_mesh, own.placements, **place).full_tensor()

    @contextmanager
    def writing(self) -> Iterator[None]:
        # What is gathered would not change with the shares.
        self._settle()
        yield

    def _as_saved(self, tensor: Tensor, whole: Tensor) -> Tensor:
        return whole.to(self._saved) if is_sharded(tensor) and tensor.is_floating_point() else whole
