"""Lessons of what prompts leave open: small pipelines that make clips of a moving ball, or tones.

They begin untrained and learn, from media with captions, what a direction or a pitch is. Half of the captions name
none, so that what a model makes without one is its own choice, which pairs and rewards change. Models are sampled by
diffusers alone, and what they make is measured by plain arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from align_anything.testing import moving, tones
from align_anything.testing.captioned import Captioned
from tests.harness.once import once
from tests.learning import seen
from tests.learning.school import train_by


@dataclass(frozen=True)
class Lesson:
    """What is asked for, and how.

    Attributes:
        pair: the modality pair.
        media: the prompts, and what makes media for them.
        start: writes the untrained model.
        sample: what a checkpoint makes of prompts, by diffusers alone.
        told: the word that a medium shows, None where it shows none.
        preferred: the word that pairs and rewards prefer where a prompt names none.
        size: settings of the size of media.
        supervised, paired, rewarded: settings of the training on captions, on pairs and on rewards.
    """

    pair: str
    media: Captioned
    start: Callable[[Path], Path]
    sample: Callable[[Path, Sequence[str]], Sequence[np.ndarray]]
    told: Callable[[np.ndarray], str | None]
    preferred: str
    size: Mapping[str, Any]
    supervised: Mapping[str, Any]
    paired: Mapping[str, Any]
    rewarded: Mapping[str, Any]


FILMING = Lesson(
    'text_to_video',
    moving.CLIPS,
    moving.filming_model,
    moving.sample_clips,
    moving.direction_of,
    'right',
    {'resolution': moving.SIDE, 'num_frames': moving.FRAMES, 'max_sequence_length': moving.WORDS},
    {'max_steps': 500, 'learning_rate': 1e-2},
    {'scale_coeff': 100.0, 'learning_rate': 1e-3, 'max_steps': 70},
    # Where a ball moves is decided early.
    {'rollout_steps': 8, 'sde_window': 4, 'sde_window_range': '[0, 0]', 'learning_rate': 2.5e-3, 'max_steps': 26},
)
SOUNDING = Lesson(
    'text_to_audio',
    tones.TONES,
    tones.sounding_model,
    tones.sample_tones,
    tones.pitch_of,
    'high',
    {},
    {'max_steps': 400, 'learning_rate': 8e-3},
    {'scale_coeff': 300.0, 'learning_rate': 1e-3, 'max_steps': 80},
    # Half of its steps are next to pure noise, where nothing is decided.
    {'rollout_steps': 10, 'sde_window': 4, 'sde_window_range': '[5, 5]', 'learning_rate': 1.5e-3, 'max_steps': 16},
)
ROWS, PAIRS, ASKED = 240, 200, 48
"""Media to learn from, pairs (and prompts to be rewarded for), and prompts to be asked."""
OPEN = 0.75
"""How many of the pairs and of the prompts leave the word open."""
SETTINGS: dict[str, Any] = {
    'model_max_length': None,
    'epochs': 1000,
    'save_checkpoint': False,
    'lr_scheduler_type': 'cosine',
    'lr_warmup_ratio': 0.05,
}
# Rows take longer to read than draws of them to denoise.
SUPERVISED: dict[str, Any] = {'per_device_train_batch_size': 16, 'draws_per_sample': 4}
PAIRED: dict[str, Any] = {'template': 'Preference', 'sft_coeff': 0.5, 'per_device_train_batch_size': 16}
REWARDED: dict[str, Any] = {
    'template': 'Prompts',
    'num_generations': 12,
    'per_device_prompt_batch_size': 4,
    'per_device_train_batch_size': 48,
    'clip_range_ratio': 1e-2,
    'beta': 0.0,
}


def train(lesson: Lesson, name: str, output: Path, model: Path, rows: Path, **settings: Any) -> Path:
    """Trains a model by an algorithm, and returns the folder of what came."""
    return train_by(lesson.pair, name, output, model, rows, **{**SETTINGS, **lesson.size, **settings})


def learn(lesson: Lesson, folder: Path, shuffled: bool = False) -> Path:
    """Trains an untrained model on media with their captions, or those of others; returns the folder of what came."""
    start, rows = lesson.start(folder / 'start'), lesson.media.write(folder / 'rows', ROWS, shuffled=shuffled)
    answers = {'train_template_kwargs': f'{{answers: {lesson.media.kind}}}'}
    return train(lesson, 'sft', folder / 'run', start, rows, **SUPERVISED, **answers, **lesson.supervised)


def taught(lesson: Lesson, shared: Path) -> Path:
    """A folder with a `model` that makes what prompts name. It is taught once a run. Do not write into the folder."""

    def teach(folder: Path) -> None:
        folder.mkdir()
        (folder / 'model').symlink_to(learn(lesson, folder))

    return once(shared, f'taught-open-{lesson.media.kind}', teach)


def prefer(lesson: Lesson, model: Path, folder: Path) -> Path:
    """Trains a model on pairs: what is better shows the word that is named, or else the preferred one."""
    kind = lesson.media.kind
    shown = {'train_template_kwargs': f'{{answers: {kind}, chosen: {kind}}}'}
    return train(lesson, 'dpo', folder / 'run', model, wanted(lesson, folder), **PAIRED, **shown, **lesson.paired)


def reward(lesson: Lesson, model: Path, folder: Path) -> Path:
    """Trains a model on rewards: 1 for media that show the word that is named, or else the preferred one."""
    prompts = {'train_template_kwargs': f'{{keep_columns: True, {lesson.media.kind}s: ""}}'}
    judged = {'reward_functions': f'[{seen.__file__}:shown_word]'}
    settings = {**REWARDED, **prompts, **judged, **lesson.rewarded}
    return train(lesson, 'grpo', folder / 'run', model, wanted(lesson, folder), **settings)


def wanted(lesson: Lesson, folder: Path) -> Path:
    """Writes rows that want the preferred word where their prompt names none."""
    return lesson.media.write(folder / 'rows', PAIRS, open_share=OPEN, preferred=lesson.preferred, seed=1)


def right(lesson: Lesson, model: Path) -> float:
    """The share of media that show the word that their prompt names, of all words equally often."""
    words = [*lesson.media.words] * (ASKED // len(lesson.media.words))
    made = lesson.sample(model, [lesson.media.named.format(word) for word in words])
    return seen.share([lesson.told(medium) for medium in made], words)


def share_of_preferred(lesson: Lesson, model: Path) -> float:
    """The share of media for the open prompt that show the preferred word."""
    made = lesson.sample(model, [lesson.media.prompt] * ASKED)
    return [lesson.told(medium) for medium in made].count(lesson.preferred) / ASKED
