"""Lessons in painting: a small pipeline that begins untrained, and pictures of coloured shapes with captions.

Half of the captions name a colour, so that the model can be asked for one, and what it paints where none is asked for
is its own choice, which pairs and rewards change. It is sampled by diffusers alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from align_anything.testing import shapes
from tests.harness.once import once
from tests.learning.school import train_by

ROWS, PAIRS = 2000, 400
"""Pictures with captions, and pairs."""
SETTINGS: dict[str, Any] = {
    'template': None,
    'model_max_length': None,
    'max_sequence_length': shapes.WORDS,
    'epochs': 1000,
    'save_checkpoint': False,
}
SUPERVISED: dict[str, Any] = {
    'max_steps': 700,
    'per_device_train_batch_size': 32,
    'learning_rate': 6e-3,
    'lr_scheduler_type': 'cosine',
    'lr_warmup_ratio': 0.05,
}
"""How an untrained painter learns colours; half a minute of a processor."""
ON_PAIRS: dict[str, Any] = {
    'template': 'Preference',
    'train_template_kwargs': '{answers: image}',
    'use_lora': True,
    'r': 8,
    'lora_alpha': 16,
    'per_device_train_batch_size': 16,
    'draws_per_sample': 2,
    'learning_rate': 2e-3,
    'lr_scheduler_type': 'constant',
    'scale_coeff': 500,
}
PAIRED: dict[str, dict[str, Any]] = {
    'dpo': {**ON_PAIRS, 'sft_coeff': 0.5, 'max_steps': 200},
    'kto': {**ON_PAIRS, 'max_steps': 220},
}
"""How what was taught goes on, on pairs."""
RANKED: dict[str, Any] = {
    **{key: value for key, value in ON_PAIRS.items() if key in ('template', 'train_template_kwargs')},
    'eval_template': 'Preference',
    'eval_template_kwargs': '{answers: image}',
    'eval_strategy': 'steps',
    'eval_interval': 24,
    'max_steps': 24,
    'per_device_train_batch_size': 16,
    'learning_rate': 3e-3,
    'model_max_length': 256,
    'max_sequence_length': None,
    'freeze_vision_tower': False,
    'freeze_mm_proj': False,
}
NAMED = [prompt for prompt in shapes.NAMED for _ in range(8)]
PLAIN = [prompt for prompt in shapes.PLAIN for _ in range(32)]
"""What painters are asked for, with colours and without."""


def train(name: str, output: Path, model: Path, rows: Path, **settings: Any) -> Path:
    """Trains a painter by an algorithm, and returns the folder of what came."""
    return train_by('text_to_image', name, output, model, rows, **{**SETTINGS, **settings})


def teach(folder: Path, shuffled: bool = False) -> Path:
    """Teaches a painter by pictures with their captions, or those of others, in a folder; returns what came of it."""
    start = shapes.build_painter(folder / 'start')
    rows = shapes.write_shapes(folder / 'shapes', ROWS, shuffled=shuffled)
    return train('sft', folder / 'run', start, rows, **SUPERVISED)


def taught(shared: Path) -> Path:
    """A folder with a painter in `model` that paints the colours it is asked for.

    It is taught once a run. Do not write into the folder.
    """

    def make(folder: Path) -> None:
        folder.mkdir()
        (folder / 'model').symlink_to(teach(folder))

    return once(shared, 'taught-painter', make)


def colours_asked_for(pictures: Sequence[Image.Image]) -> float:
    """The share of pictures of `NAMED` that have the colour asked for."""
    pairs = zip(pictures, NAMED, strict=True)
    return sum(shapes.colour_of(picture) == prompt.split()[1] for picture, prompt in pairs) / len(NAMED)


def share_of(colour: str, pictures: Sequence[Image.Image]) -> float:
    """The share of pictures that have a colour."""
    return [shapes.colour_of(picture) for picture in pictures].count(colour) / len(pictures)
