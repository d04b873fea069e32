"""Pairs of answers, one right and one wrong, to questions that have two answers: in text, and about media.

Every lesson has pairs to learn from, pairs held out, and, where there are media, the pairs held out with the media of
the other answer: nothing but the media tells that these are wrong.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.learning.lessons import colours, directions, pitches
from tests.learning.tasks import NUMBERS, Question, row, turn

WORDS = (('red', 'blue'), ('low', 'high'), ('left', 'right'))
OTHER = {word: other for pair in WORDS for word, other in (pair, pair[::-1])}
TRAINED, HELD_OUT = 96, 24

Lesson = Callable[[Path, str, int], list[Question]]


def words(folder: Path, name: str, count: int) -> list[Question]:
    """Which colour stands between two numbers, in pairs of numbers that training never had."""
    generator = random.Random(f'words {name}')
    around = [(one, two) for one in range(10) for two in range(10) if ((one + two) % 4 == 0) == (name == 'held-out')]
    asked = []
    for word in generator.sample([*WORDS[0]] * (count // 2), count):
        one, two = generator.choice(around)
        asked.append(Question([turn('user', f'{NUMBERS[one]} {word} {NUMBERS[two]}')], word))
    return asked


def two_colours(folder: Path, name: str, count: int) -> list[Question]:
    """Whether the shape in an image is red or blue."""
    return colours(folder, name, count, ('red', 'blue'))


def two_pitches(folder: Path, name: str, count: int) -> list[Question]:
    """Whether a tone is low or high."""
    return pitches(folder, name, count, ('low', 'high'))


def sights_and_sounds(folder: Path, name: str, count: int) -> list[Question]:
    """Rows with an image and rows with an audio clip."""
    return [question for lesson in (two_colours, two_pitches) for question in lesson(folder, name, count * 2 // 3)]


LESSONS: dict[str, Lesson] = {
    'text_to_text': words,
    'text_image_to_text': two_colours,
    'text_audio_to_text': two_pitches,
    'text_video_to_text': directions,
    'any_to_text': sights_and_sounds,
}
"""By pair."""


def write_lesson(folder: Path, lesson: Lesson) -> list[Path]:
    """Writes the rows of a lesson into files: `train`, `held-out` and, where there are media, `exchanged`."""
    parts = {name: lesson(folder, name, count) for name, count in (('train', TRAINED), ('held-out', HELD_OUT))}
    if parts['train'][0].media:
        parts['exchanged'] = with_media_of_the_other(parts['held-out'])
    return [_write(folder / f'{name}.jsonl', asked) for name, asked in parts.items()]


def with_media_of_the_other(asked: Sequence[Question]) -> list[Question]:
    """The questions, each with the media of one that has the other answer; all media are used."""
    media = {word: iter([question.media for question in asked if question.answer == word]) for word in OTHER}
    return [replace(question, media=next(media[OTHER[question.answer]])) for question in asked]


def _write(path: Path, asked: Sequence[Question]) -> Path:
    path.write_text(''.join(json.dumps(pair(question)) + '\n' for question in asked))
    return path


def pair(question: Question) -> dict[str, Any]:
    """A row for the template `Preference`."""
    media = {key: value for key, value in row(question).items() if key != 'messages' and value}
    return {'prompt': question.turns, 'chosen': question.answer, 'rejected': OTHER[question.answer], **media}
