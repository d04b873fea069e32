"""What lessons of robots share: demonstrations, a robot that imitates them, pairs of its own episodes."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align_anything.core.types import Episode
from align_anything.environments.base import get_environment
from align_anything.environments.demonstrations import write_demonstrations
from align_anything.testing.acting import build_acting
from align_anything.testing.played import outcome, play
from tests.harness.once import once
from tests.learning.school import train_by
from tests.trainers.runs import lines, write_rows

ROOM, PAIR = 'hot_floor', 'text_video_to_action'
DEMONSTRATED, FEW = 3000, 800
UNSEEN = range(900_000, 900_300)
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
        write_demonstrations(ROOM, {}, folder, DEMONSTRATED, prompts=4000)
        build_acting(folder / 'untrained', get_environment(ROOM).actions)

    return once(shared, 'rooms-with-hot-floor', make)


def imitator(shared: Path, name: str, **settings: Any) -> Path:
    """A robot that imitates demonstrations, made once."""
    folder = rooms(shared)

    def make(out: Path) -> None:
        train_by(
            PAIR,
            'sft',
            out,
            folder / 'untrained',
            folder / 'demonstrations.jsonl',
            **{**IMITATING, 'image_folder': folder, 'sample_cache_dir': folder / 'encoded', **settings},
        )

    return once(shared, name, make) / 'slice_end'


def good(shared: Path) -> Path:
    """A robot that learned from all demonstrations."""
    return imitator(shared, 'robot-that-imitates', epochs=12)


def weak(shared: Path) -> Path:
    """A robot that learned from few of them."""
    return imitator(shared, 'robot-of-few-lessons', epochs=16, train_size=FEW)


def tried(model: Path, temperature: float = 0.0) -> dict[str, float]:
    """How a robot does in rooms that it never saw."""
    return outcome(play(model, ROOM, UNSEEN, temperature=temperature))


def shuffled(folder: Path) -> Path:
    """The demonstrations, each told to pick up what another one is told to."""
    rows = lines(folder / 'demonstrations.jsonl')
    words = [row['messages'][0]['content'][0]['text'] for row in rows]
    random.Random(0).shuffle(words)
    for row, said in zip(rows, words, strict=True):
        row['messages'][0]['content'][0]['text'] = said
    return write_rows(folder / 'shuffled.jsonl', rows)


def worth(episode: Episode) -> float:
    """More for success, less for each step onto hot floor."""
    return float(bool(episode.info.get('success'))) - 0.25 * episode.cost


def write_pairs(folder: Path, episodes: Sequence[Episode], generations: int) -> Path:
    """Rows of the best and the worst episode of each room, where these are not worth the same."""
    (folder / 'seen').mkdir(parents=True)
    rows = []
    for start in range(0, len(episodes), generations):
        own = sorted(episodes[start : start + generations], key=worth)
        if worth(own[-1]) > worth(own[0]):
            asked = _written(own[0].asked, folder, f'{start}_first')
            chosen, rejected = (_written(own[at].messages, folder, f'{start}_{at}') for at in (-1, 0))
            rows.append({'prompt': asked, 'chosen': _acted(chosen), 'rejected': _acted(rejected)})
    return write_rows(folder / 'pairs.jsonl', rows)


def _acted(messages: list[Any]) -> list[Any]:
    """Without what was seen behind the last action."""
    last = max(number for number, message in enumerate(messages) if message['role'] == 'assistant')
    return messages[: last + 1]


def _written(messages: Sequence[Any], folder: Path, name: str) -> list[Any]:
    written = []
    for number, message in enumerate(messages):
        parts = []
        for part in message['content']:
            if part['type'] == 'image':
                file = folder / 'seen' / f'{name}_{number}.png'
                part['image'].save(file)
                part = {'type': 'image', 'image': str(file)}
            elif part['type'] == 'action':
                part = {'type': 'action', 'action': part['action'].names[0]}
            parts.append(part)
        written.append({'role': message['role'], 'content': parts})
    return json.loads(json.dumps(written))
