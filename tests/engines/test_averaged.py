"""The average of trained weights: the same in every ZeRO stage, in place for a while, and restored exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from align_anything.engines.averaged import AveragedWeights, warmed_up
from align_anything.engines.base import Engine
from align_anything.engines.deepspeed_config import build_config
from align_anything.engines.deepspeed_engine import DeepSpeedEngine
from align_anything.engines.fsdp_config import build_fsdp_config
from align_anything.engines.fsdp_engine import FSDPEngine
from align_anything.policies.denoising.policy import DenoisingPolicy
from tests.harness.pairwise import in_tiers
from tests.harness.ranks import run_ranks
from tests.policies.denoising.test_policy import CUTS, OFFLINE, rows_of
from tests.policies.denoising.toy import policy_of

STEPS, DECAY = 3, 0.15
Found = dict[str, Any]


def opened(stage: int | str, ranks: int, precision: str = 'fp32') -> Engine:
    run = {'micro_batch': 2, 'accumulation': 2, 'world_size': ranks, 'precision': precision, 'max_grad_norm': 0.0}
    # One bias is too small to be partitioned, as in any real run.
    zero = {'stage': stage, **({'stage3_param_persistence_threshold': 4} if stage == 3 else {})}
    policy: DenoisingPolicy = policy_of('flow', 0, torch.bfloat16 if precision == 'bf16' else torch.float32)
    policy.model.told.requires_grad_(False)
    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    if stage == 'fsdp':
        return FSDPEngine(
            policy,
            build_fsdp_config(precision=precision, max_grad_norm=0.0, reshard_after_forward=True, cpu_offload=False),
            lambda module: torch.optim.AdamW(module.parameters(), lr=1e-2, eps=1e-3, weight_decay=0.0),
            lambda base: torch.optim.lr_scheduler.ConstantLR(base, factor=1.0),
        )
    return DeepSpeedEngine(
        policy,
        build_config({'zero_optimization': zero}, optimizer='adamw_torch', **run),
        torch.optim.AdamW(parameters, lr=1e-2, eps=1e-3, weight_decay=0.0),
        lambda base: torch.optim.lr_scheduler.ConstantLR(base, factor=1.0),
    )


def trained(rank: int, stage: int | str, ranks: int, precision: str, file: Path, resumed: Path | None) -> Found:
    engine = opened(stage, ranks, precision)
    average = AveragedWeights(engine)
    rows = rows_of('sft')
    batches = [engine.policy.collate([rows[number] for number in part][rank::ranks]) for part in CUTS[0] + CUTS[1]]
    if resumed is not None:
        average.load_state(resumed)
        average.save_state(file)
        return {'updates': average.updates}
    steps = [engine.full_state_dict(engine.policy.model)]
    for _ in range(STEPS):
        engine.train_step(batches, OFFLINE['sft'])
        average.follow(warmed_up(DECAY, average.updates))
        steps.append(engine.full_state_dict(engine.policy.model))
    scores = [engine.infer(batches[0]).values.tolist()]
    with average.in_place():
        inside = engine.full_state_dict(engine.policy.model)
        scores.append(engine.infer(batches[0]).values.tolist())
    scores.append(engine.infer(batches[0]).values.tolist())
    after = engine.full_state_dict(engine.policy.model)
    average.save_state(file)
    engine.train_step(batches, OFFLINE['sft'])
    return {'steps': steps, 'inside': inside, 'after': after, 'scores': scores}


def averaged(steps: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """By hand, in float64."""
    found = {name: tensor.double() for name, tensor in steps[0].items()}
    for number, step in enumerate(steps[1:]):
        decay = min(DECAY, (1 + number) / (10 + number))
        found = {name: decay * own + (1 - decay) * step[name].double() for name, own in found.items()}
    return found


CASES = [
    ('fsdp', 2, 'fp32'),
    (0, 1, 'fp32'),
    (3, 2, 'fp32'),
    (2, 2, 'bf16'),
    (2, 2, 'fp32'),
    (3, 2, 'bf16'),
    (1, 1, 'bf16'),
]


@pytest.mark.parametrize(('stage', 'ranks', 'precision'), in_tiers(CASES, [(3, 2, 'fp32')]))
def test_it_is_the_average_of_every_stage(stage: int | str, ranks: int, precision: str, tmp_path: Path) -> None:
    found, *_ = run_ranks(trained, ranks, args=(stage, ranks, precision, tmp_path / 'first.safetensors', None))
    rounding = 1e-2 if precision == 'bf16' else 1e-6
    assert not torch.equal(found['steps'][1]['inside.weight'], found['steps'][3]['inside.weight'])
    for name, wanted in averaged(found['steps']).items():
        torch.testing.assert_close(found['inside'][name].double(), wanted, rtol=rounding, atol=rounding, msg=name)
        assert torch.equal(found['after'][name], found['steps'][-1][name]), name
    before, inside, after = found['scores']
    assert before == after != inside
    [again, *_] = run_ranks(
        trained,
        3 - ranks,
        args=(3, 3 - ranks, precision, tmp_path / 'again.safetensors', tmp_path / 'first.safetensors'),
    )
    assert again['updates'] == STEPS
    assert (tmp_path / 'again.safetensors').read_bytes() == (tmp_path / 'first.safetensors').read_bytes()


def aside(rank: int) -> tuple[set[str], set[str]]:
    engine = opened(0, 1)
    average = AveragedWeights(engine, torch.device('meta'))
    average.follow(DECAY)
    # What trains waits there too while the average is in place.
    kept = [*average._average.values(), *map(average._aside, average._parameters.values())]
    return {tensor.device.type for tensor in kept}, {own.device.type for own in engine.policy.parameters()}


@pytest.mark.extended
def test_it_lies_on_the_device_that_is_given() -> None:
    assert run_ranks(aside, 1) == [({'meta'}, {'cpu'})]


def test_the_warm_up_is_that_of_everybody() -> None:
    assert [warmed_up(0.999, updates) for updates in (0, 1, 8, 10**6)] == [0.1, 2 / 11, 0.5, 0.999]
