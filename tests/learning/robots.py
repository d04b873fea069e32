"""What lessons of robots share: demonstrations, and a robot that imitates them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from align_anything.environments.base import get_environment
from align_anything.environments.demonstrations import write_demonstrations
from align_anything.testing.acting import build_acting
from align_anything.testing.played import outcome, play
from tests.harness.once import once
from tests.learning.school import train_by
from tests.trainers.runs import lines, write_rows

ROOM, PAIR = 'hot_floor', 'text_video_to_action'
# As in `make demo-robot`.
DEMONSTRATED, PROMPTS = 2500, 5000
UNSEEN = range(900_000, 900_300)
NOISE = 0.5 / len(UNSEEN) ** 0.5
"""The standard error of a share of these rooms, at most."""
IMITATING = {
    'template': 'Messages',
    'per_device_train_batch_size': 64,
    'learning_rate': 2e-3,
    'lr_scheduler_type': 'cosine',
    'lr_warmup_ratio': 0.1,
    'weight_decay': 0.01,
    'model_max_length': None,
    'gradient_checkpointing': None,
    'save_checkpoint': False,
}
ACTING = {
    'template': 'Prompts',
    'train_template_kwargs': '{keep_columns: True}',
    'environment': ROOM,
    'max_turns': 24,
    'epochs': 20,
    'lr_scheduler_type': 'constant',
    'model_max_length': None,
    'gradient_checkpointing': None,
    'save_checkpoint': False,
}


def rooms(shared: Path) -> Path:
    """A folder with demonstrations, prompts of other rooms and a model of random weights, made once."""

    def make(folder: Path) -> None:
        write_demonstrations(ROOM, {}, folder, DEMONSTRATED, prompts=PROMPTS)
        build_acting(folder / 'untrained', get_environment(ROOM).actions)

    return once(shared, 'rooms-with-hot-floor', make)


def imitator(shared: Path, name: str, rows: Path | None = None, **settings: Any) -> Path:
    """A robot that imitates the demonstrations of the bot, or those in `rows`, made once."""
    folder = rooms(shared)

    def make(out: Path) -> None:
        train_by(
            PAIR,
            'sft',
            out,
            folder / 'untrained',
            rows or folder / 'demonstrations.jsonl',
            **{**IMITATING, 'image_folder': folder, 'sample_cache_dir': folder / 'encoded', **settings},
        )

    return once(shared, name, make) / 'slice_end'


def good(shared: Path) -> Path:
    """A robot that learned from all demonstrations."""
    return imitator(shared, 'robot-that-imitates', epochs=12)


def confused(shared: Path) -> Path:
    """A robot that learned as much from as many demonstrations, each with the mission of another one."""

    def shuffle(folder: Path) -> None:
        rows = lines(rooms(shared) / 'demonstrations.jsonl')
        missions = [row['messages'][0]['content'][0]['text'] for row in rows]
        random.Random(0).shuffle(missions)
        for row, mission in zip(rows, missions, strict=True):
            row['messages'][0]['content'][0]['text'] = mission
        folder.mkdir()
        write_rows(folder / 'demonstrations.jsonl', rows)

    rows = once(shared, 'rooms-with-shuffled-missions', shuffle) / 'demonstrations.jsonl'
    return imitator(shared, 'robot-that-is-confused', rows, epochs=12)


def tried(model: Path, temperature: float = 0.0) -> dict[str, float]:
    """How a robot does in rooms that it never saw."""
    return outcome(play(model, ROOM, UNSEEN, temperature=temperature))
