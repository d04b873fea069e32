"""A policy that only scores: replicated on each device, or partitioned by DeepSpeed's ZeRO-3 or by FSDP2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from align_anything.core.types import Batch, Scored
from align_anything.engines.deepspeed_config import zero_stage
from align_anything.engines.fsdp_config import SECTION, is_fsdp
from align_anything.engines.process_group import give_dimensions, join_process_group
from align_anything.engines.release import remember
from align_anything.engines.sharding import let_go, shard
from align_anything.policies.base import Policy


class FrozenEngine:
    """Scores batches with a policy whose weights never change. Every rank makes the same calls where it is partitioned.

    ZeRO stages below 3 share what only training has, so each device then holds all of the model.
    """

    def __init__(self, policy: Policy, config: Mapping[str, Any], device: torch.device) -> None:
        policy.requires_grad_(False).eval()
        self.device = device
        self.policy = policy
        self.module: nn.Module = policy
        self._sharded = is_fsdp(config)
        if self._sharded:
            join_process_group()
            give_dimensions(policy)
            shard(policy, config[SECTION], device)
        elif zero_stage(config) == 3:
            import deepspeed

            join_process_group()
            give_dimensions(policy)
            self.module, *_ = deepspeed.initialize(model=policy, config=dict(config), dist_init_required=False)
            remember(self.module)
            self.module.eval()
        else:
            policy.to(device)

    def score(self, batch: Batch, **asked: bool) -> Scored:
        """Scores a batch that is on the device, without a graph; `asked` is what the policy returns beside."""
        with torch.no_grad():
            scored = self.module(batch, **asked)
        if self._sharded:
            let_go(self.policy)
        return scored
