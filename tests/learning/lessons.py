"""Small tasks with media, whose answers cannot be guessed: a colour, a pitch, a direction, and two of them at once.

A lesson draws media into a folder and returns questions about them. An answer has a word for each medium, and each word
comes equally often.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image, ImageDraw

from tests.learning.tasks import ASK_COLOUR, COLOURS, SIDE, Question, draw, turn

RATE = 16000
PITCHES = {'low': (150, 300), 'middle': (700, 1100), 'high': (2500, 4000)}
"""Hertz, from and to."""
DIRECTIONS = ('left', 'right')
CHANGES = ('brighter', 'darker')
OPPOSITES = {'left': 'right', 'right': 'left', 'brighter': 'darker', 'darker': 'brighter'}
FRAMES = 4
SUFFIXES = {'image': '.png', 'audio': '.wav', 'video': ''}
"""Of files; a video is a folder of frames."""

ASK_PITCH = ('How high is the tone?', 'Which tone is it?', 'What do you hear?')
ASK_DIRECTION = ('Which way does it move?',)
ASK_CHANGE = ('How does the light change?',)
ASK_BOTH = 'What do you see, and what do you hear?'

CORPUS = (
    *ASK_PITCH,
    *ASK_DIRECTION,
    *ASK_CHANGE,
    ASK_BOTH,
    *(f'{word} {word}\n{word}' for word in (*PITCHES, *DIRECTIONS, *CHANGES) for _ in range(4)),
)
"""Further texts for the tokenizer."""


def colours(folder: Path, name: str, count: int, words: Iterable[str] = COLOURS) -> list[Question]:
    """Which colour the shape in an image has."""
    return _asked_about('colours', 'image', words, draw, ASK_COLOUR, folder, name, count)


def pitches(folder: Path, name: str, count: int, words: Iterable[str] = PITCHES) -> list[Question]:
    """How high a tone is."""
    return _asked_about('pitches', 'audio', words, play, ASK_PITCH, folder, name, count)


def directions(folder: Path, name: str, count: int) -> list[Question]:
    """Which way a bar moves."""
    return _asked_about('directions', 'video', DIRECTIONS, film, ASK_DIRECTION, folder, name, count)


def changes(folder: Path, name: str, count: int) -> list[Question]:
    """Whether the light grows or fades."""
    return _asked_about('changes', 'video', CHANGES, dim, ASK_CHANGE, folder, name, count)


def directions_and_pitches(folder: Path, name: str, count: int) -> list[Question]:
    """Which way a bar moves, and how high a tone is."""
    return _paired(directions(folder, f'{name}-both', count), pitches(folder, f'{name}-both', count))


def play(path: Path, pitch: str, generator: random.Random) -> Path:
    """Writes a tone with some noise, of a loudness and length of chance."""
    noise = np.random.default_rng(generator.randrange(2**32))
    time = np.arange(generator.randrange(RATE, int(1.2 * RATE))) / RATE
    tone = np.sin(2 * np.pi * generator.uniform(*PITCHES[pitch]) * time + generator.uniform(0, 6))
    samples = generator.uniform(0.1, 0.6) * (tone + 0.05 * noise.standard_normal(len(time)))
    soundfile.write(path, samples.astype(np.float32), RATE)
    return path


def film(folder: Path, direction: str, generator: random.Random) -> Path:
    """Draws a bar that moves over a dark ground; the frames of a video say nothing without their order."""
    folder.mkdir()
    width = generator.randrange(SIDE // 5, SIDE // 3)
    ends = (generator.randrange(0, SIDE // 8), SIDE - width - generator.randrange(0, SIDE // 8))
    start, end = ends if direction == 'right' else ends[::-1]
    ground, bar = generator.randrange(0, 60), generator.randrange(180, 256)
    for number in range(FRAMES):
        left = start + (end - start) * number // (FRAMES - 1)
        frame = Image.new('RGB', (SIDE, SIDE), (ground,) * 3)
        ImageDraw.Draw(frame).rectangle((left, 0, left + width, SIDE), fill=(bar,) * 3)
        frame.save(folder / f'{number}.png')
    return folder


def dim(folder: Path, change: str, generator: random.Random) -> Path:
    """Draws a ground that grows lighter or darker."""
    folder.mkdir()
    ends = (generator.randrange(0, 60), generator.randrange(180, 256))
    start, end = ends if change == 'brighter' else ends[::-1]
    for number in range(FRAMES):
        Image.new('RGB', (SIDE, SIDE), (start + (end - start) * number // (FRAMES - 1),) * 3).save(
            folder / f'{number}.png'
        )
    return folder


def turned_round(question: Question) -> Question:
    """The question about the same frames in reverse order; the right answer is the opposite."""
    ((kind, clip),) = question.media
    folder = clip.with_name(f'{clip.name}-reversed')
    folder.mkdir()
    frames = sorted(clip.iterdir())
    for frame, place in zip(reversed(frames), frames, strict=True):
        (folder / place.name).symlink_to(frame)
    return replace(question, media=((kind, folder),), answer=OPPOSITES[question.answer])


def exchanged(asked: Sequence[Question], others: Sequence[Question], kind: str) -> list[Question]:
    """The questions, each with the media of one kind of another, and the word for each of its media as its answer."""
    questions = []
    for mine, other in zip(asked, others, strict=True):
        words = zip(mine.answer.split(), other.answer.split(), strict=True)
        new = [medium[0] == kind for medium in mine.media]
        media = [pair[is_new] for pair, is_new in zip(zip(mine.media, other.media, strict=True), new, strict=True)]
        answer = ' '.join(pair[is_new] for pair, is_new in zip(words, new, strict=True))
        questions.append(replace(mine, media=tuple(media), answer=answer))
    return questions


def rotated(asked: Sequence[Question]) -> list[Question]:
    """The questions, each in the place of the one before it."""
    return [*asked[1:], *asked[:1]]


def _asked_about(
    lesson: str,
    kind: str,
    words: Iterable[str],
    make: Callable[[Path, str, random.Random], Path],
    asked: Sequence[str],
    folder: Path,
    name: str,
    count: int,
) -> list[Question]:
    """Questions about one medium each, in an order of chance, every word equally often."""
    generator = random.Random(f'{lesson} {name}')
    words, questions = [*words], []
    for index, word in enumerate(generator.sample(words * (count // len(words)), count)):
        medium = (kind, make(folder / f'{name}-{lesson}-{index}{SUFFIXES[kind]}', word, generator))
        questions.append(Question([turn('user', generator.choice(asked), [medium])], word, (medium,)))
    return questions


def _paired(first: Sequence[Question], second: Sequence[Question]) -> list[Question]:
    return [
        Question([turn('user', ASK_BOTH, one.media + two.media)], f'{one.answer} {two.answer}', one.media + two.media)
        for one, two in zip(first, second, strict=True)
    ]
