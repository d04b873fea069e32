"""Optimizers that are named: which can be had, and what they keep."""

from __future__ import annotations

import copy
import importlib.util
import math

import pytest
import torch

from align_anything.configs.schema import RunCfgs, TrainCfgs
from align_anything.core.errors import SettingsError
from align_anything.engines.optim import (
    EIGHT_BITS,
    SHAPES,
    choose_optimizer,
    make_optimizer,
    make_schedule,
    state_bytes,
)
from align_anything.trainers.loops.progress import Progress, manifest_of, resume_progress
from align_anything.trainers.runs.memory import estimate_memory

BETAS = (0.9, 0.95)
needs_bitsandbytes = pytest.mark.skipif(importlib.util.find_spec('bitsandbytes') is None, reason='bitsandbytes')


def test_what_is_missing_or_spares_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: object())
    assert choose_optimizer(EIGHT_BITS, device_type='cuda', offload=False) == EIGHT_BITS
    with pytest.raises(SettingsError, match='train_cfgs.optimizer: adamw_8bit spares memory of the device'):
        choose_optimizer(EIGHT_BITS, device_type='cuda', offload=True)
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(SettingsError, match=r'pip install "align-anything\[bnb\]"'):
        choose_optimizer(EIGHT_BITS, device_type='cuda', offload=False)


def test_moments_of_8_bits_are_not_resumed_by_other_ranks() -> None:
    for optimizer, refused in ((EIGHT_BITS, True), ('adamw_torch', False)):
        cfgs = RunCfgs(train_cfgs=TrainCfgs(optimizer=optimizer, gradient_accumulation_steps=2))
        manifest = copy.deepcopy(manifest_of(Progress(), cfgs))
        manifest['identity'] |= {'world_size': 2, 'train_cfgs.gradient_accumulation_steps': 1}
        if not refused:
            resume_progress(manifest, cfgs, 'slice_1')
            continue
        with pytest.raises(SettingsError, match='adamw_8bit are not split among other ranks: slice_1 is of 2, and'):
            resume_progress(manifest, cfgs, 'slice_1')


def test_the_estimate_of_memory_knows_8_bits() -> None:
    model, file = torch.nn.Linear(1024, 1024, bias=False), {'zero_optimization': {'stage': 0}}
    for precision, master in (('fp32', 0), ('bf16', 4)):
        found = {
            name: estimate_memory(model, file, precision, 1, name).optimizer / 1024**2 for name in ('', EIGHT_BITS)
        }
        assert found == {'': 8 + master, EIGHT_BITS: 2 + 8 / 256 + master}


@needs_bitsandbytes
def test_moments_are_kept_in_8_bits() -> None:
    torch.manual_seed(0)
    plain = torch.nn.Parameter(torch.randn(64, 128))
    less, first = torch.nn.Parameter(plain.detach().clone()), plain.detach().clone()
    optimizers = [
        make_optimizer(name, [{'params': [weight], 'lr': 1e-2, 'weight_decay': 0.1}], betas=BETAS, eps=1e-8)
        for name, weight in (('adamw_torch', plain), (EIGHT_BITS, less))
    ]
    for _ in range(4):
        plain.grad = torch.randn_like(plain)
        less.grad = plain.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    kept = {tensor for tensor in optimizers[1].state[less].values() if torch.is_tensor(tensor)}
    assert {tensor.dtype for tensor in kept if tensor.numel() >= less.numel()} == {torch.uint8}
    stored = sum(tensor.nbytes for tensor in kept if tensor.numel() != 256)
    assert stored == pytest.approx(less.numel() * state_bytes(EIGHT_BITS))
    moved = plain.detach() - first
    assert (less.detach() - first - moved).norm() < 0.1 * moved.norm()


@pytest.mark.parametrize('kind', SHAPES)
def test_rates_are_those_of_transformers_to_the_bit(kind: str) -> None:
    from transformers import get_scheduler

    for total, ratio in ((1, 0.0), (1, 1.0), (7, 0.0), (7, 0.2), (100, 0.03), (100, 1.0)):
        ours, theirs = (torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-5) for _ in range(2))
        warmup = math.ceil(ratio * total)
        schedules = [
            make_schedule(ours, kind, warmup_ratio=ratio, total_steps=total),
            get_scheduler(kind, theirs, num_warmup_steps=warmup, num_training_steps=total),
        ]
        rates = []
        for _ in range(total + 3):
            rates.append([schedule.get_last_lr() for schedule in schedules])
            ours.step()
            theirs.step()
            for schedule in schedules:
                schedule.step()
        assert all(left == right for left, right in rates), (total, ratio)
        # What a checkpoint keeps of one is read by the other.
        for schedule, other in zip(schedules, reversed(schedules), strict=True):
            schedule.load_state_dict(other.state_dict())
