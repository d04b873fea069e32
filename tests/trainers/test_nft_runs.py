"""Whole runs of DiffusionNFT: the old policy samples, follows, and belongs to the resumed state."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align_anything.algorithms.nft import NFT
from tests.trainers.denoising import PICTURES, online, write_digits
from tests.trainers.runs import succeed

Tiny = Callable[..., Path]
STEPS = 3
SETTINGS = {'max_steps': STEPS, 'old_decay_rate': 0.25, 'per_device_train_batch_size': 4, 'learning_rate': 1e-2}


@pytest.fixture(scope='module')
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits to draw."""
    return write_digits(tmp_path_factory.mktemp('digits'), 16)


def nft(output: Path, model: Path, rows: Path, **settings: Any) -> list[str]:
    return online(output, model, rows, **{**SETTINGS, **settings})


def test_it(tiny, rows, tmp_path):
    out = tmp_path / 'run'
    succeed(
        nft(
            out,
            tiny('sd3'),
            rows,
            preview_prompts='[a zero, a one]',
            preview_every=2,
            preview_steps=2,
            ema_decay=0.9,
            save_interval=2,
            save_total_limit=1,
        ),
        1,
        PICTURES,
        algorithm=NFT,
    )
    import subprocess

    print(subprocess.run(['find', str(out)], capture_output=True, text=True).stdout)
    print(open(out / 'metrics.jsonl').read())
    assert 0
