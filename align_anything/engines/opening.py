"""Opens the engine that a configuration is one of."""

from __future__ import annotations

from torch import nn

from align_anything.engines.base import Engine, EngineConfig, Optimizer, Schedule
from align_anything.engines.fsdp_config import is_fsdp


def open_engine(
    policy: nn.Module,
    config: EngineConfig,
    make_optimizer: Optimizer,
    make_schedule: Schedule,
    *,
    router_coefficient: float,
    copies: int,
) -> Engine:
    """Wraps `policy` in an engine; `make_optimizer` is given what is trained. See `Engine` for the rest."""
    if is_fsdp(config):
        from align_anything.engines.fsdp_engine import FSDPEngine

        return FSDPEngine(policy, config, make_optimizer, make_schedule, router_coefficient, copies)
    from align_anything.engines.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(policy, config, make_optimizer(policy), make_schedule, router_coefficient, copies)
