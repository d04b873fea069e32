"""Short command lines of runs that train tiny pipelines on pictures of digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align_anything.algorithms.base import Algorithm
from align_anything.cli.leaves import find_run
from align_anything.testing.emitting import write_digit_rows
from align_anything.trainers.pairs import PAIRS
from tests.trainers.runs import lines, sft
from tests.trainers.test_emitting import SAFE

PICTURES = PAIRS['text_to_image']
SHOWN = {'template': 'Preference', 'train_template_kwargs': '{answers: image, prompt: question, chosen: picture}'}
REWARDS = """
import numpy

def dark(completions):
    pictures = [part['image'] for item in completions for part in item.message['content'] if part['type'] == 'image']
    assert len(pictures) == len(completions)
    return [1 - float(numpy.asarray(picture).mean()) / 255 for picture in pictures]
"""


def named(name: str) -> type[Algorithm]:
    """The algorithm of that name."""
    return find_run('text_to_image', name)[1]


def write_digits(folder: Path, count: int = 8) -> Path:
    """Rows of digits to draw, each beside another one, `rewards.py`, and `safe.py` with labels."""
    (folder / 'rewards.py').write_text(REWARDS)
    (folder / 'safe.py').write_text(SAFE)
    return write_digit_rows(folder, count)


def offline(output: Path, model: Path, rows: Path, *more: Any, **settings: Any) -> list[str]:
    """The command line of a run on data: without what tokens alone have."""
    values = {'template': 'Messages', 'learning_rate': 1e-3, 'log_interval': 1, 'model_max_length': None, **settings}
    if values['template'] == 'Messages':
        values.setdefault('train_template_kwargs', '{images: ""}')
    return sft(output, model, rows, *more, **values)


def online(output: Path, model: Path, rows: Path, *more: Any, **settings: Any) -> list[str]:
    """The command line of a run on its own pictures, two steps of it."""
    values = {
        'num_generations': 2,
        'per_device_prompt_batch_size': 2,
        'per_device_train_batch_size': 4,
        'rollout_steps': 3,
        'reward_functions': f'[{rows.parent}/rewards.py:dark]',
        'max_steps': 2,
        **settings,
    }
    return offline(output, model, rows, *more, **values)


def metrics(output: Path, name: str) -> list[float]:
    """The values of a metric by step."""
    return [record[name] for record in lines(output / 'metrics.jsonl') if name in record]
