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

from align_anything.cli.leaves import find_run
from align_anything.testing import moving, tones
from align_anything.testing.captioned import Captioned
from tests.harness.once import once
from tests.learning import seen
from tests.trainers.runs import run, sft


@dataclass(frozen=True)
class Lesson:
    """What is asked for, and how.

    Attributes:
        pair: the modality pair.
        media: the prompts, and what makes media for them.
        start: writes the untrained model.
        sample: what a checkpoint makes of prompts, by diffusers alone.
        told: the word that a medium shows, None where it shows none.
        preferred: the word that pairs and rewards prefer.
        reward: the reward function that tells it.
        size: settings of the size of media.
        supervised: settings of the training on captions.
    """

    pair: str
    media: Captioned
    start: Callable[[Path], Path]
    sample: Callable[[Path, Sequence[str]], Sequence[np.ndarray]]
    told: Callable[[np.ndarray], str | None]
    preferred: str
    reward: str
    size: Mapping[str, Any]
    supervised: Mapping[str, Any]


FILMING = Lesson(
    'text_to_video',
    moving.CLIPS,
    moving.filming_model,
    moving.sample_clips,
    moving.direction_of,
    'right',
    'moves_right',
    {'resolution': moving.SIDE, 'num_frames': moving.FRAMES, 'max_sequence_length': moving.WORDS},
    {'max_steps': 400, 'learning_rate': 1e-2},
)
SOUNDING = Lesson(
    'text_to_audio',
    tones.TONES,
    tones.sounding_model,
    tones.sample_tones,
    tones.pitch_of,
    'high',
    'sounds_high',
    {},
    {'max_steps': 400, 'learning_rate': 8e-3},
)
ROWS, PAIRS, ASKED = 240, 200, 48
"""Media to learn from, pairs, and prompts to be asked."""
SETTINGS: dict[str, Any] = {
    'model_max_length': None,
    'epochs': 1000,
    'save_checkpoint': False,
    'per_device_train_batch_size': 32,
    'lr_scheduler_type': 'cosine',
    'lr_warmup_ratio': 0.05,
}
DPO: dict[str, Any] = {
    'template': 'Preference',
    'scale_coeff': 500.0,
    'sft_coeff': 0.5,
    'per_device_train_batch_size': 16,
    'learning_rate': 5e-4,
    'max_steps': 60,
}
GRPO: dict[str, Any] = {
    'template': 'Prompts',
    'rollout_steps': 8,
    'num_generations': 16,
    'per_device_prompt_batch_size': 2,
    'per_device_train_batch_size': 32,
    'learning_rate': 5e-4,
    'clip_range_ratio': 1e-2,
    'beta': 0.0,
    'max_steps': 30,
}


def train(lesson: Lesson, name: str, output: Path, model: Path, rows: Path, **settings: Any) -> Path:
    """Trains a model by an algorithm, and returns the folder of what came."""
    pair, algorithm = find_run(lesson.pair, name)
    argv = sft(output, model, rows, **{**SETTINGS, **lesson.size, **settings})
    (done,) = run(argv, 1, pair, algorithm=algorithm, timeout=600)
    assert done.code == 0, done.output
    return output / 'slice_end'


def learn(lesson: Lesson, folder: Path) -> Path:
    """Trains an untrained model on media with captions in `folder`; returns the folder of what came of it."""
    start, rows = lesson.start(folder / 'start'), lesson.media.write(folder / 'rows', ROWS)
    answers = {'train_template_kwargs': f'{{answers: {lesson.media.kind}}}'}
    return train(lesson, 'sft', folder / 'run', start, rows, **answers, **lesson.supervised)


def taught(lesson: Lesson, shared: Path) -> Path:
    """A folder with a `model` that makes what prompts name. It is taught once a run. Do not write into the folder."""

    def teach(folder: Path) -> None:
        folder.mkdir()
        (folder / 'model').symlink_to(learn(lesson, folder))

    return once(shared, f'taught-open-{lesson.media.kind}', teach)


def prefer(lesson: Lesson, model: Path, folder: Path, **settings: Any) -> Path:
    """Trains a model on pairs for the open prompt, the preferred word in each against another one."""
    rows = lesson.media.write(folder / 'pairs', PAIRS, preferred=lesson.preferred, seed=1)
    kind = lesson.media.kind
    shown = {'train_template_kwargs': f'{{answers: {kind}, chosen: {kind}}}'}
    return train(lesson, 'dpo', folder / 'run', model, rows, **{**DPO, **shown, **settings})


def reward(lesson: Lesson, model: Path, folder: Path, **settings: Any) -> Path:
    """Trains a model on rewards for what it makes of the open prompt: 1 for the preferred word, 0 for all else."""
    rows = folder / 'prompts.txt'
    rows.write_text(f'{lesson.media.prompt}\n' * 16)
    judged = {'reward_functions': f'[{seen.__file__}:{lesson.reward}]'}
    return train(lesson, 'grpo', folder / 'run', model, rows, **{**GRPO, **judged, **settings})


def right(lesson: Lesson, model: Path) -> float:
    """The share of media that show the word that their prompt names, of all words equally often."""
    words = [*lesson.media.words] * (ASKED // len(lesson.media.words))
    made = lesson.sample(model, [lesson.media.named.format(word) for word in words])
    return seen.share([lesson.told(medium) for medium in made], words)


def share_of_preferred(lesson: Lesson, model: Path) -> float:
    """The share of media for the open prompt that show the preferred word."""
    made = lesson.sample(model, [lesson.media.prompt] * ASKED)
    return [lesson.told(medium) for medium in made].count(lesson.preferred) / ASKED
