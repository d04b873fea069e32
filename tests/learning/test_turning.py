"""A tiny model learns to act by tokens: from demonstrations, and better from rewards. Without its mission it cannot."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from align_anything.environments.demonstrations import write_demonstrations
from align_anything.testing.tiny import build
from tests.learning import lights
from tests.learning.school import train_by
from tests.trainers.runs import lines, write_rows

PROMPT = 'Drive.'
WORLD = f'{lights.__file__}:Lights'
# Who sees the lights and does not know where to turn passes three of four, on average.
LUCK = 0.75**3


def common() -> dict[str, Any]:
    return {
        'freeze_vision_tower': False,
        'model_max_length': 256,
        'epochs': 1000,
        'lr_scheduler_type': 'cosine',
        'lr_warmup_ratio': 0.1,
        'save_checkpoint': False,
    }


def shown(folder: Path, errs: float = 0.0, shuffled: bool = False) -> Path:
    """A model that was shown how to drive, with the missions of other episodes where they are shuffled."""
    write_demonstrations(WORLD, {'errs': errs}, folder, 600)
    rows = lines(folder / 'demonstrations.jsonl')
    missions = [row['messages'][0]['content'][0]['text'] for row in rows]
    if shuffled:
        random.Random(0).shuffle(missions)
    for row, mission in zip(rows, missions, strict=True):
        row['messages'][0]['content'][0]['text'] = f'{PROMPT}\n\n{mission}'
    write_rows(folder / 'rows.jsonl', rows)
    corpus = [*(f'{PROMPT} {mission}' for mission in lights.MISSIONS), 'user assistant system'] * 50
    # At 6e-3, in batches of 8, it learns what lights are for, and nothing of missions.
    settings = {'learning_rate': 2e-3, 'per_device_train_batch_size': 32, 'max_steps': 100, 'code_loss_over': 'range'}
    start = build('qwen2_vl', folder / 'start', corpus=corpus)
    how = {'template': 'Messages', 'action_tokens': 'tail', **common(), **settings}
    return train_by('text_video_to_action', 'sft', folder / 'sft', start, folder / 'rows.jsonl', **how)


def driven(folder: Path, model: Path, **settings: Any) -> list[float]:
    """Trains on the road; returns the success of each rollout."""
    write_rows(folder / 'prompts.jsonl', [{'prompt': PROMPT}] * 64)
    how = {
        'template': 'Prompts',
        'environment': WORLD,
        'max_turns': 3,
        'max_new_tokens': 2,
        'num_generations': 8,
        'per_device_prompt_batch_size': 16,
        'per_device_train_batch_size': 128,
        'beta': 0.0,
        'loss_aggregation': 'token-mean',
        **common(),
        **settings,
    }
    train_by('text_video_to_action', 'grpo', folder / 'grpo', model, folder / 'prompts.jsonl', **how)
    return [record['train/success'] for record in lines(folder / 'grpo' / 'metrics.jsonl') if 'train/success' in record]


@pytest.mark.extended
def test_rewards_make_a_driver_better(tmp_path: Path) -> None:
    settings = {'credit': 'turn', 'learning_rate': 1e-3, 'update_iters': 2, 'max_steps': 30}
    found = driven(tmp_path, shown(tmp_path, errs=0.45), **settings)
    # The first two rollouts are of what was shown, the last ones of what was rewarded.
    before, after = sum(found[:2]) / 2, sum(found[-2:]) / 2
    assert before < 0.5 and after >= before + 0.3, found


@pytest.mark.extended
def test_shuffled_missions_teach_nothing_of_them(tmp_path: Path) -> None:
    (found,) = driven(tmp_path, shown(tmp_path, shuffled=True), learning_rate=0.0, max_steps=1)
    assert found <= LUCK + 0.15
