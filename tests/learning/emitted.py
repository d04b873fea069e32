"""Lessons in drawing and singing: small models that begin untrained, and rows of which half are wrongly named.

Digits are pictures of sixteen codes, melodies three tones of codes that the model itself has to end. After supervised
training a model knows no more than the half that is right; pairs and rewards teach it the other half. It is asked by
transformers alone, and what it draws is looked at by a classifier that no reward has.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from align_anything.core.types import MediaKind
from align_anything.models.codecs.base import codec_rules
from align_anything.testing import emitting
from align_anything.testing.sampling import sample_media
from tests.harness.once import once
from tests.learning import seen
from tests.learning.school import open_text_model, train_by
from tests.trainers.runs import write_rows

NOISE = 40
"""Of 255 levels of grey."""
MOST_FRAMES = 24
"""After so many codes a melody that goes on counts as none."""


@dataclass(frozen=True)
class Lesson:
    """What is asked for, in which rows, and what is right.

    Attributes:
        pair: the modality pair.
        kind: of the media that answers are.
        column: of the rows, with the answer.
        start: makes the untrained model.
        write: writes rows into a folder, as `emitting.write_digit_rows` does.
        right: how much of a medium is as a row asks, from 0 to 1.
        reward: the reward function that knows.
        supervised: settings of the training on rows of which half are wrong.
    """

    pair: str
    kind: MediaKind
    column: str
    start: Callable[..., Path]
    write: Callable[..., Path]
    right: Callable[[Sequence[Any], Sequence[dict[str, Any]]], float]
    reward: str
    supervised: Mapping[str, Any]

    @property
    def answers(self) -> dict[str, Any]:
        """The settings that read the rows as what they ask for and its answer."""
        return {'train_template_kwargs': f'{{answers: {self.kind}, prompt: question, response: {self.column}}}'}

    @property
    def pairs(self) -> str:
        """The options of the template that reads the rows as pairs."""
        return f'{{answers: {self.kind}, prompt: question, chosen: {self.column}}}'


def digits_right(pictures: Sequence[Any], rows: Sequence[dict[str, Any]]) -> float:
    """The share of pictures that show the digit asked for, to a classifier that learned the odd half of the digits."""
    found = emitting.read_digits(pictures, half=1).argmax(1)
    return seen.share(found.tolist(), [row['digit'] for row in rows])


def notes_right(sounds: Sequence[Any], rows: Sequence[dict[str, Any]]) -> float:
    """The share of notes that are heard as asked for."""
    shares = [
        0.0 if sound is None else seen.share(emitting.heard(sound), row['notes'])
        for sound, row in zip(sounds, rows, strict=True)
    ]
    return sum(shares) / len(shares)


DRAWING = Lesson(
    'text_to_image',
    'image',
    'picture',
    emitting.drawing_model,
    emitting.write_digit_rows,
    digits_right,
    'drawn_digit',
    {'max_steps': 1200, 'per_device_train_batch_size': 32, 'learning_rate': 1.5e-3},
)
SINGING = Lesson(
    'text_to_audio',
    'audio',
    'melody',
    emitting.singing_model,
    emitting.write_melody_rows,
    notes_right,
    'sung_notes',
    {'max_steps': 600, 'per_device_train_batch_size': 64, 'learning_rate': 2e-3},
)
TRAINED, PAIRS, ASKED = 1300, 3900, 300
"""Rows to learn from, pairs (each with another answer that is worse), and prompts to be asked."""
SUPERVISED = {'epochs': 100, 'lr_scheduler_type': 'cosine', 'lr_warmup_ratio': 0.1}
AT_ONCE = {'max_steps': 450, 'per_device_train_batch_size': 16, 'learning_rate': 3e-3}
BOTH_WAYS = {
    'pair': 'any_to_any',
    'template': 'Messages',
    'train_template_kwargs': '{images: ""}',
    # A name is two tokens, a picture sixteen.
    'emitted_loss_weights': '{image: 0.4}',
    'max_steps': 1400,
    'per_device_train_batch_size': 32,
    'learning_rate': 2e-3,
    'weight_decay': 0.1,
}
SETTINGS: dict[str, Any] = {'save_checkpoint': False, 'model_max_length': 96}
PAIRED: dict[str, Any] = {'per_device_train_batch_size': 32, 'learning_rate': 2e-4, 'lr_scheduler_type': 'constant'}
REWARDED: dict[str, Any] = {
    'template': 'Prompts',
    'train_template_kwargs': '{prompt: question, answer: "", keep_columns: True}',
    'num_generations': 8,
    'per_device_prompt_batch_size': 16,
    'per_device_train_batch_size': 128,
    'update_iters': 2,
    'max_new_tokens': 30,
    'learning_rate': 5e-4,
    'lr_scheduler_type': 'constant',
}
ALGORITHMS: dict[str, dict[str, Any]] = {
    'dpo': {**PAIRED, 'scale_coeff': 0.1, 'max_steps': 120},
    'kto': {**PAIRED, 'scale_coeff': 0.1, 'max_steps': 120},
    'rm': {**PAIRED, 'learning_rate': 1e-3, 'lr_scheduler_type': 'cosine', 'lr_warmup_ratio': 0.1, 'max_steps': 120},
    'grpo': {**REWARDED, 'beta': 0.0, 'max_steps': 80},
    'ppo': {**REWARDED, 'kl_coeff': 0.0, 'critic_lr': 2e-3, 'max_steps': 60},
}
"""How what was taught is trained on."""


def start(lesson: Lesson, folder: Path) -> Path:
    """The untrained model that lessons begin with."""
    return lesson.start(folder, hidden=96, layers=3)


def train(
    lesson: Lesson, name: str, output: Path, model: Path, rows: Path, pair: str | None = None, **settings: Any
) -> Path:
    """Trains a model by an algorithm, on the pair of the lesson or another, and returns the folder of what came."""
    return train_by(pair or lesson.pair, name, output, model, rows, **{**SETTINGS, **settings})


def taught(lesson: Lesson, shared: Path) -> Path:
    """A folder with a `model` that was taught by rows of which half are wrong, and the rows for what comes next.

    It is taught once a run. Do not write into the folder.
    """

    def teach(folder: Path) -> None:
        folder.mkdir()
        untrained = start(lesson, folder / 'start')
        wrong = lesson.write(folder / 'wrong', TRAINED, wrong=0.5)
        lesson.write(folder / 'right', PAIRS, seed=1)
        settings = {**lesson.answers, **SUPERVISED, **lesson.supervised, 'sample_cache_dir': folder / 'samples'}
        (folder / 'model').symlink_to(train(lesson, 'sft', folder / 'run', untrained, wrong, **settings))

    return once(shared, f'taught-{lesson.column}', teach)


def taught_both_ways(shared: Path) -> Path:
    """A folder with a `model` that draws digits and names them, taught in one run, and rows as `taught` has them.

    It is taught once a run. Do not write into the folder.
    """

    def teach(folder: Path) -> None:
        folder.mkdir()
        untrained, rows = start(DRAWING, folder / 'start'), write_both_ways(folder / 'both', emitting.LEARNED)
        emitting.write_digit_rows(folder / 'right', PAIRS, seed=1)
        emitting.write_digit_rows(folder / 'held-out', 200, first=emitting.LEARNED)
        settings = {**SUPERVISED, **BOTH_WAYS, 'sample_cache_dir': folder / 'samples'}
        (folder / 'model').symlink_to(train(DRAWING, 'sft', folder / 'run', untrained, rows, **settings))

    return once(shared, 'taught-both-ways', teach)


def learn_at_once(lesson: Lesson, folder: Path) -> Path:
    """Trains an untrained model for a few steps on rows that are all right; returns the folder of what came of it."""
    rows, model = lesson.write(folder / 'rows', TRAINED), start(lesson, folder / 'start')
    return train(lesson, 'sft', folder / 'run', model, rows, **{**lesson.answers, **SUPERVISED, **AT_ONCE})


def go_on(lesson: Lesson, name: str, folder: Path, output: Path, **more: Any) -> Path:
    """Trains the model in `folder`, of `taught`, by an algorithm; returns the folder of what came of it."""
    settings = {'epochs': 100, **ALGORITHMS[name], **more}
    if name in ('grpo', 'ppo'):
        settings['reward_functions'] = f'[{seen.__file__}:{lesson.reward}]'
    else:
        settings |= {'template': 'Preference', 'train_template_kwargs': lesson.pairs}
    return train(lesson, name, output, folder / 'model', folder / 'right' / 'rows.jsonl', **settings)


def accuracy(lesson: Lesson, model: Path, shuffled: bool = False) -> float:
    """How much of what a checkpoint answers to held-out prompts is right; or right for prompts that are not its own."""
    random = np.random.default_rng(2)
    rows = questions(lesson, random)
    found = sample_media(model, lesson.kind, [row['question'] for row in rows], longest=MOST_FRAMES)
    order = random.permutation(len(rows)) if shuffled else range(len(rows))
    return lesson.right(found, [rows[at] for at in order])


def write_both_ways(folder: Path, rows: int) -> Path:
    """Writes rows that ask for digits to be drawn, and twice as many that show one and ask which; returns their file.

    What is shown has some noise, or too few digits would be learned by heart.
    """
    random = np.random.default_rng(3)
    drawn = emitting.write_digit_rows(folder, rows)
    both = []
    for number, line in enumerate(map(json.loads, drawn.read_text().splitlines())):
        both.append({'messages': line['messages']})
        with Image.open(folder / line['picture']) as picture:
            pixels = np.asarray(picture, dtype=np.float64)
        for time in range(2):
            name = f'noisy-{number}-{time}.png'
            noise = random.normal(0, NOISE, pixels.shape[:2])[..., None]
            Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8)).save(folder / name)
            both.append({'messages': naming(name, emitting.DIGITS[line['digit']])})
    return write_rows(folder / 'both.jsonl', both)


def naming(picture: str, word: str) -> list[dict[str, Any]]:
    """A conversation about a picture of a digit."""
    shown = [{'type': 'image', 'image': picture}, {'type': 'text', 'text': 'the digit'}]
    return [{'role': 'user', 'content': shown}, {'role': 'assistant', 'content': word}]


def names(model: Path, pictures: Sequence[Any]) -> list[str]:
    """What a checkpoint says that pictures show, greedily, by transformers alone."""
    loaded, tokenizer = open_text_model(model)
    declared = loaded.config.media_codes['image']
    codec = codec_rules(model / declared['codec']).open()
    (first,) = declared['first_ids']
    tokens = tokenizer.convert_ids_to_tokens(range(first, first + codec.rules.books[0]))
    said = []
    for codes in codec.encode(pictures):
        written = ''.join(
            [declared['opening'], *(tokens[code] for code in codes.flatten().tolist()), declared['closing']]
        )
        said.append(written + 'the digit')
    asked = [
        tokenizer.apply_chat_template([{'role': 'user', 'content': text}], add_generation_prompt=True, tokenize=False)
        for text in said
    ]
    inputs = tokenizer(asked, return_tensors='pt', padding=True, padding_side='left', add_special_tokens=False)
    with torch.no_grad():
        found = loaded.generate(**inputs, do_sample=False, max_new_tokens=8)
    return tokenizer.batch_decode(found[:, inputs['input_ids'].shape[1] :], skip_special_tokens=True)


def questions(lesson: Lesson, random: np.random.Generator) -> list[dict[str, Any]]:
    """Prompts with what is asked for, each equally often."""
    if lesson is DRAWING:
        return [
            {'question': f'draw the digit {word}', 'digit': digit}
            for digit, word in enumerate(emitting.DIGITS)
            for _ in range(ASKED // 10)
        ]
    notes = random.integers(len(emitting.TONES), size=(ASKED, 3)).tolist()
    return [{'question': f'sing {" ".join(emitting.TONES[note] for note in three)}', 'notes': three} for three in notes]
