"""A denoiser under DeepSpeed steps as it does in one process: whole, and with its weights partitioned."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from align_anything.core.types import Batch
from align_anything.engines.deepspeed_config import build_config
from align_anything.engines.deepspeed_engine import DeepSpeedEngine
from align_anything.policies.denoising.policy import DenoisingPolicy
from align_anything.policies.denoising.prediction import Guidance
from align_anything.policies.denoising.transitions import Kernel
from tests.harness.local_engine import LocalEngine
from tests.harness.ranks import run_ranks
from tests.policies.denoising.test_policy import CUTS, OFFLINE, ONLINE, recorded, rows_of
from tests.policies.denoising.toy import policy_of

SETTINGS = {'kernel': Kernel('flow_sde', 0.7), 'guidance': Guidance(2.5)}
NAMES = ('dpo', 'grpo')


def fresh(seed: int, dtype: torch.dtype = torch.float32) -> DenoisingPolicy:
    return policy_of('flow', seed, dtype, **SETTINGS)


def micro_batches(policy: DenoisingPolicy, name: str, cut: list[list[int]]) -> list[Batch]:
    examples = rows_of(name) if name in OFFLINE else recorded(fresh(0), fresh(0), fresh(5))
    return [policy.collate([examples[number] for number in part]) for part in cut]


def under_deepspeed(rank: int, stage: int) -> dict[str, tuple[float, dict[str, Tensor]]]:
    run = {'micro_batch': 2, 'accumulation': 2, 'world_size': 1, 'precision': 'fp32', 'max_grad_norm': 0.0}
    config = build_config({'zero_optimization': {'stage': stage}}, optimizer='adamw_torch', **run)
    policy, found = fresh(0), {}
    engine = DeepSpeedEngine(
        policy, config, torch.optim.AdamW(policy.parameters(), lr=1e-3, eps=1e-3, weight_decay=0.0),
        lambda base: torch.optim.lr_scheduler.ConstantLR(base, factor=1.0),
    )  # fmt: skip
    policy.check(engine.engine, engine.device)
    for name in NAMES:
        roles = {'reference': fresh(5).requires_grad_(False)} if name == 'dpo' else {}
        result = engine.train_step(micro_batches(policy, name, CUTS[2]), {**OFFLINE, **ONLINE}[name], roles)
        found[name] = result.loss, engine.full_state_dict(engine.policy.model)
    return found


@pytest.mark.parametrize('stage', [0, pytest.param(3, marks=pytest.mark.extended)])
def test_deepspeed_steps_as_one_process(stage: int) -> None:
    [found] = run_ranks(under_deepspeed, 1, args=(stage,))
    policy = fresh(0)
    engine = LocalEngine(policy, torch.optim.AdamW(policy.parameters(), lr=1e-3, eps=1e-3, weight_decay=0.0))
    for name in NAMES:
        roles = {'reference': fresh(5).requires_grad_(False)} if name == 'dpo' else {}
        result = engine.train_step(micro_batches(policy, name, CUTS[0]), {**OFFLINE, **ONLINE}[name], roles)
        loss, state = found[name]
        assert loss == pytest.approx(result.loss, rel=1e-4), name
        for key, value in policy.model.state_dict().items():
            torch.testing.assert_close(state[key], value, rtol=1e-4, atol=2e-5, msg=f'{name}: {key}')
