"""A tiny model that now and then looks into a picture learns from rewards alone to look before it answers."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align_anything.testing.tiny import build
from tests.harness.once import once
from tests.learning import digits
from tests.learning.school import train_by
from tests.trainers.runs import lines, write_rows

PAIR = 'text_image_to_text'
LOOKS, GAINED, LUCK = 1 / 3, 0.3, 1 / digits.NAMES
"""How often it is shown to look, what more of its answers are right by rewards, and how many are by chance."""


@pytest.fixture
def looking(shared_cache: Path) -> Callable[[], Path]:
    """A folder with rows and a `model`, which reads digits from close, and says any digit where it does not look."""

    def teach(folder: Path) -> None:
        folder.mkdir()
        taught = digits.closeups(folder, 1600) + digits.demonstrations(folder, 1600, LOOKS)
        random.Random(0).shuffle(taught)
        write_rows(folder / 'taught.jsonl', taught)
        write_rows(folder / 'asked.jsonl', digits.prompts(folder, 'asked', 512))
        write_rows(folder / 'held-out.jsonl', digits.prompts(folder, 'held-out', 200, held_out=True))
        start = build('qwen2_vl', folder / 'start', corpus=digits.CORPUS, vocab=640, vision_hidden=64)
        settings = {'max_steps': 300, 'learning_rate': 2e-3, 'per_device_train_batch_size': 32}
        model = train_by(PAIR, 'sft', folder / 'run', start, folder / 'taught.jsonl', **common(), **settings)
        (folder / 'model').symlink_to(model)

    return lambda: once(shared_cache, 'looks-now-and-then', teach)


def common() -> dict[str, Any]:
    return {
        'template': 'Messages',
        'freeze_vision_tower': False,
        'model_max_length': 384,
        'epochs': 1000,
        'lr_scheduler_type': 'cosine',
        'lr_warmup_ratio': 0.1,
    }


def succeeds(folder: Path, output: Path, environment: str, **settings: Any) -> tuple[float, float]:
    """Trains by rewards; returns how often it is right on held-out pictures in the end, and its turns there."""
    how = {
        'environment': environment,
        'environment_kwargs': digits.KWARGS,
        'max_turns': 2,
        'max_new_tokens': 16,
        'num_generations': 8,
        'per_device_prompt_batch_size': 16,
        'per_device_train_batch_size': 128,
        'update_iters': 2,
        'beta': 0.0,
        'loss_aggregation': 'token-mean',
        'save_checkpoint': False,
        'eval_datasets': folder / 'held-out.jsonl',
        'eval_template': 'Messages',
        'eval_strategy': 'steps',
        'eval_interval': settings['max_steps'],
        'per_device_eval_batch_size': 50,
    }
    train_by(PAIR, 'grpo', output, folder / 'model', folder / 'asked.jsonl', **common(), **how, **settings)
    (found,) = (record for record in lines(output / 'metrics.jsonl') if 'eval/success' in record)
    return found['eval/success'], found['eval/turns']


@pytest.mark.extended
@pytest.mark.timeout(1800)
def test_rewards_teach_it_to_look(looking: Callable[[], Path], tmp_path: Path) -> None:
    folder = looking()
    before, turns = succeeds(folder, tmp_path / 'before', 'zoom', learning_rate=0.0, max_steps=1)
    after, more = succeeds(folder, tmp_path / 'after', 'zoom', learning_rate=5e-4, max_steps=50)
    assert before <= 0.6 and after >= before + GAINED, (before, after)
    assert turns <= 1.6 and more >= 1.8, (turns, more)


@pytest.mark.extended
@pytest.mark.timeout(1800)
def test_where_nothing_is_seen_from_close_nothing_is_learned(looking: Callable[[], Path], tmp_path: Path) -> None:
    after, _ = succeeds(looking(), tmp_path, f'{digits.__file__}:Blind', learning_rate=5e-4, max_steps=50)
    assert after <= LUCK + 0.12, after
