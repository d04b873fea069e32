"""A tiny pi0 learns to reach by numbers, from demonstrations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from align_anything.environments.demonstrations import write_demonstrations
from align_anything.testing.tiny import build
from tests.harness.once import once
from tests.learning.reached import success
from tests.learning.school import train_by

PAIR = 'text_video_to_action'
COMMON: dict[str, Any] = {
    'freeze_vision_tower': False,
    'model_max_length': None,
    'epochs': 50,
    'save_checkpoint': False,
}


@pytest.fixture
def demonstrated(shared_cache: Path) -> Path:
    """A folder with demonstrations, prompts of other tables, and an untrained `model`."""

    def make(folder: Path) -> None:
        write_demonstrations('reach', {}, folder, 1500, prompts=320)
        build('pi0', folder / 'model')

    return once(shared_cache, 'reach-demonstrated', make)


def taught(folder: Path, output: Path, steps: int) -> Path:
    """What comes of so many steps of SFT on demonstrations."""
    changes = {'per_device_train_batch_size': 32, 'learning_rate': 1e-3, 'lr_warmup_ratio': 0.05, 'max_steps': steps}
    rows = folder / 'demonstrations.jsonl'
    return train_by(PAIR, 'sft', output, folder / 'model', rows, template='Messages', **COMMON | changes)


@pytest.mark.extended
def test_demonstrations_teach_it_to_reach(demonstrated: Path, tmp_path: Path) -> None:
    before = success(demonstrated / 'model')
    after = success(taught(demonstrated, tmp_path, 300))
    assert before < 0.3 and after >= 0.85, (before, after)
