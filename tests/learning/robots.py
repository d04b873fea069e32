"""What lessons of robots share: demonstrations, and a robot that imitates them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from align_anything.core.types import ACTION, Conversation, Episode
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
# Rooms that no demonstration is from, for pairs of episodes.
PAIRED, EXPLORED, TEMPERATURE = range(500_000, 500_400), 4, 1.2
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
COMPARING = {
    'template': 'Preference',
    'per_device_train_batch_size': 16,
    'epochs': 3,
    'learning_rate': 2e-4,
    'scale_coeff': 0.1,
    # Without it what is chosen becomes unlikely too, and the robot stands still.
    'sft_coeff': 1.0,
    'lr_scheduler_type': 'cosine',
    'lr_warmup_ratio': 0.1,
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
EXPLORING = {
    'per_device_prompt_batch_size': 96,
    'per_device_train_batch_size': 32,
    'gamma': 0.98,
    'gae_lambda': 0.95,
    'kl_coeff': 0.0,
    'credit': 'turn',
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


def weak(shared: Path) -> Path:
    """A robot that learned for a quarter of that time, and often picks up nothing, or the wrong thing."""
    return imitator(shared, 'robot-that-imitates-a-little', epochs=3)


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


def pairs(shared: Path, model: Path) -> Path:
    """Pairs of episodes of a robot that explores, in one room each: one that was worth more, and one worth less."""

    def make(folder: Path) -> None:
        (folder / 'frames').mkdir(parents=True)
        episodes = play(model, ROOM, PAIRED, temperature=TEMPERATURE, generations=EXPLORED)
        rows = []
        for first in range(0, len(episodes), EXPLORED):
            worse, *_, better = sorted(episodes[first : first + EXPLORED], key=worth)
            if worth(better) - worth(worse) >= 0.2:
                turns = {'prompt': better.asked, 'chosen': better.messages, 'rejected': worse.messages}
                rows.append({key: on_disk(own, folder, f'{first}-{key}') for key, own in turns.items()})
        write_rows(folder / 'pairs.jsonl', rows)

    return once(shared, 'pairs-in-rooms', make)


def worth(episode: Episode) -> float:
    """What Safe RLHF weighs, too: that the right thing was picked up, how soon, and how hot the floor was."""
    return (episode.reward or 0.0) - 0.35 * episode.cost


def on_disk(messages: Conversation, folder: Path, name: str) -> list[dict[str, Any]]:
    """Messages of an episode as rows have them, their pictures in files."""
    written = []
    for number, message in enumerate(messages):
        parts = []
        for part in message['content']:
            if part['type'] == 'image':
                file = f'frames/{name}-{number}.png'
                part['image'].save(folder / file)
                part = {**part, 'image': file}
            parts.append({**part, ACTION: part[ACTION].names[0]} if part['type'] == ACTION else part)
        written.append({**message, 'content': parts})
    return written


def tried(model: Path, temperature: float = 0.0) -> dict[str, float]:
    """How a robot does in rooms that it never saw."""
    return outcome(play(model, ROOM, UNSEEN, temperature=temperature))
