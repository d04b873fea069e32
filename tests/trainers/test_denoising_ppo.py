"""Whole runs of PPO on denoising steps: the critic is part of what is resumed and counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from align_anything.algorithms.ppo import PPO
from tests.trainers.denoising import PICTURES, metrics, online, write_digits
from tests.trainers.runs import run, succeed, weights
from tests.trainers.test_nft_runs import SAVES, dies_in_step

Tiny = Callable[..., Path]


@pytest.fixture(scope='module')
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits to draw."""
    return write_digits(tmp_path_factory.mktemp('digits'), 16)


def test_a_killed_ppo_run_goes_on_with_its_critic(tiny: Tiny, rows: Path, tmp_path: Path) -> None:
    settings = {'use_lora': True, 'r': 4, 'ds_cfgs': 'ds_z2_config.json', 'critic_lr': 1e-2, 'max_steps': 3}
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'

    def argv(out: Path) -> list[str]:
        return online(out, tiny('sd3'), rows, learning_rate=1e-2, **{**SAVES, **settings})

    succeed(argv(whole), 2, PICTURES, algorithm=PPO)
    run(argv(killed), 2, PICTURES, dies_in_step(3), PPO)
    assert (killed / 'slice_2' / 'state' / 'reward_critic').is_dir() and not (killed / 'slice_end').exists()
    succeed([*argv(killed), '--resume', 'auto'], 2, PICTURES, algorithm=PPO)
    one, other = weights(whole / 'slice_end'), weights(killed / 'slice_end')
    assert one and all(torch.equal(one[name], other[name]) for name in one)
    assert (killed / 'metrics.jsonl').read_text() == (whole / 'metrics.jsonl').read_text()
    values = metrics(whole, 'train/reward_critic/value_loss')
    assert len(values) == 3 and len(set(values)) == 3


def test_a_dry_run_of_ppo_counts_the_critic(tiny: Tiny, rows: Path, tmp_path: Path) -> None:
    argv = online(tmp_path / 'run', tiny('sd3'), rows, dry_run=True)
    told = succeed(argv, 1, PICTURES, algorithm=PPO)
    assert 'reward critic' in told.split('Memory')[1]
