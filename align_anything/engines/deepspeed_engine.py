"""DeepSpeed around one module: wrap, step, save and restore."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from align_anything.core.distributed import gather_tensors, rank, world_size
from align_anything.core.errors import SettingsError, TrainingError
from align_anything.core.parameters import full_shape
from align_anything.engines.base import Engine
from align_anything.engines.deepspeed_config import sharer_of, zero_stage
from align_anything.engines.deepspeed_state import STATE_TAG, writing_apart, written_by_name
from align_anything.engines.fsdp_state import read_by_name
from align_anything.engines.gathering import gathered_by_zero
from align_anything.engines.named_state import WEIGHTS, NamedState, go_on
from align_anything.engines.optim import clip_and_norm, complete_gradients
from align_anything.engines.process_group import give_dimensions, join_process_group
from align_anything.engines.release import remember
from align_anything.engines.reshape import is_partitioned_state, reshaped
from align_anything.policies.base import Policy


class DeepSpeedEngine(Engine):
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
        """Wraps `module`, a policy; see `Engine` for the rest."""
        import deepspeed

        super().__init__(router_coefficient, copies)
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
        self.partitioned = self.stage == 3
        self.in_force = sharer_of(config)

    @property
    def module(self) -> nn.Module:
        return self.engine

    @property
    def policy(self) -> Policy:
        return self.engine.module

    @property
    def grad_norm(self) -> float:
        norm = self._plain_norm if self._plain else self.engine.get_global_grad_norm()
        return float(norm) if norm is not None else float('nan')

    @property
    def learning_rates(self) -> list[float]:
        return [float(rate) for rate in self.engine.get_lr()]

    def _begin(self, last: bool) -> None:
        # ZeRO reads the boundary in the forward pass as well.
        self.engine.set_gradient_accumulation_boundary(last)

    def _propagate(self, loss: Tensor) -> None:
        self.engine.backward(loss, scale_wrt_gas=False)

    def _apply(self, finite: bool) -> bool:
        if self._plain:
            complete_gradients(self.policy.parameters())
            self._plain_norm = float(clip_and_norm(self.policy.parameters(), self.max_grad_norm))
            if not math.isfinite(self._plain_norm):
                self.engine.zero_grad()
                return False
        with record_function('optimizer'):
            self.engine.step()
        return self.engine.was_step_applied()

    def _settle(self) -> None:
        # What ZeRO-3 gathers, it lets go by itself.
        pass

    def save_state(self, folder: Path) -> None:
        frozen = any(not parameter.requires_grad for parameter in self.policy.parameters())
        with writing_apart(self.engine):
            self.engine.save_checkpoint(str(folder), tag=STATE_TAG, save_latest=False, exclude_frozen_parameters=frozen)

    def load_state(self, folder: Path, scratch: Path | None = None) -> None:
        if not self.wrote(folder):
            self._take_over(read_by_name(folder), scratch)
        elif scratch is not None and is_partitioned_state(folder / STATE_TAG):
            with reshaped(folder / STATE_TAG, scratch) as made:
                self.engine._config.load_universal_checkpoint = True
                with self._apart():
                    self._load(made.parent)
                self.engine._config.load_universal_checkpoint = False
        else:
            self._load(folder)

    def wrote(self, folder: Path) -> bool:
        return (folder / STATE_TAG).is_dir()

    @torch.no_grad()
    def _take_over(self, state: NamedState, scratch: Path) -> None:
        trained = {name: own for name, own in self.policy.named_parameters() if own.requires_grad}
        optimizer = self.engine.optimizer
        if self.stage == 0 and not self._plain:
            raise TrainingError(
                '--resume: in half precision without ZeRO, DeepSpeed cannot read the state of FSDP2; go on with '
                'engine: fsdp, or with ds_cfgs: ds_z2_config.json.'
            )
        if self._plain:
            for name, parameter in trained.items():
                found = state.of(name)
                parameter.copy_(found.pop(WEIGHTS))
                optimizer.state[parameter] = {'step': torch.tensor(state.step), **found} if found else {}
        else:
            groups = optimizer.param_groups
            with written_by_name(state, scratch, list(trained), groups) as made, self._apart(), self.writing():
                optimizer._load_universal_checkpoint(str(made), True, False)
            if not self.partitioned:
                optimizer.update_lp_params()
        go_on(optimizer, self.engine.lr_scheduler, state.schedule)

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """Keeps groups of parameters apart while a universal checkpoint is loaded.

        ZeRO-3 gives all groups the settings of the first one, and one count of steps, which each of them then raises.
        """
        optimizer = self.engine.optimizer
        kept = [{key: value for key, value in group.items() if key != 'params'} for group in optimizer.param_groups]
        yield
        rates = self.engine.lr_scheduler.get_last_lr()
        for group, own, rate in zip(optimizer.param_groups, kept, rates, strict=True):
            group.update({**own, 'lr': rate})
        for state in optimizer.optimizer.state.values():
            if isinstance(state.get('step'), Tensor):
                state['step'] = state['step'].clone()

    def _load(self, folder: Path) -> None:
        frozen = any(not parameter.requires_grad for parameter in self.policy.parameters())
        path, _ = self.engine.load_checkpoint(str(folder), tag=STATE_TAG, load_module_strict=not frozen)
        if path is None:
            raise TrainingError(f'{folder} holds no DeepSpeed state that this run can load.')

    def gathered_weights(self) -> AbstractContextManager[None]:
        return (
            gathered_by_zero(self.policy, self.engine.optimizer.parameter_offload)
            if self.partitioned
            else nullcontext()
        )

    def share_of(self, parameter: nn.Parameter) -> Tensor:
        return parameter.ds_tensor.data if self.partitioned else parameter.data

    def share_in(self, parameter: nn.Parameter, tensor: Tensor) -> Tensor:
        if not self.partitioned:
            return tensor
        length = parameter.ds_tensor.numel()
        share = tensor.flatten()[rank() * length : (rank() + 1) * length]
        return torch.cat([share, share.new_zeros(length - share.numel())])

    def joined(self, parameter: nn.Parameter, share: Tensor) -> Tensor:
        if not self.partitioned:
            return share
        shape = full_shape(parameter)
        return torch.cat(gather_tensors(share.to(self.device)))[: shape.numel()].view(shape)

    @contextmanager
    def writing(self) -> Iterator[None]:
        # Small parameters are kept gathered, and would stay as they are.
        zero = self.engine.optimizer if self.partitioned else None
        if zero is not None:
            zero.checkpoint_event_prologue()
        yield
        if zero is not None:
            zero.checkpoint_event_epilogue()
