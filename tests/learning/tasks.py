"""Two small tasks with answers that cannot be guessed, and what a trained model is asked about them.

Text: the number word that comes next, in phrasings that training never had, and again in a second turn that only the
first answer explains. Images: the colour of a shape in images that training never had, also of a second image in
the same conversation. The tasks with videos and audio are in lessons.py.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from align_anything.core.types import MEDIA_KINDS

NUMBERS = 'zero one two three four five six seven eight nine'.split()
COLOURS = {'red': (220, 30, 30), 'green': (30, 180, 40), 'blue': (30, 50, 220), 'yellow': (230, 220, 30)}
SIDE = 56

OPENINGS = ('What', 'Please say what', 'Quick, what', 'Now tell me what', 'Do you know what', 'Hello, what')
ENDINGS = ('comes after {}?', 'follows {}?', 'is the next word once you said {}?', 'comes right behind {}?')
AGAIN = 'And after that?'
ASK_COLOUR = ('Which colour is the shape?', 'What is the colour?', 'Name the colour.')
ASK_NEXT_PICTURE = 'And in this one?'

CORPUS = (
    *(f'{opening} {ending.format("zero")}' for opening in OPENINGS for ending in ENDINGS),
    *ASK_COLOUR,
    *('user assistant system Human Assistant User USER ASSISTANT Human: Assistant: User: USER: ASSISTANT: model',) * 4,
    *(AGAIN, ASK_NEXT_PICTURE) * 2,
    *(f'{word} {word}\n{word}' for word in (*NUMBERS, *COLOURS) for _ in range(4)),
)
"""Texts for the tokenizer, so that a word is a token or two."""

Turn = dict[str, Any]
Medium = tuple[str, Path]
"""Its kind and its file, or the folder of its frames."""


@dataclass(frozen=True)
class Question:
    """A conversation that waits for its last answer: turns in chat form, the media in order, the right word."""

    turns: list[Turn]
    answer: str
    media: tuple[Medium, ...] = ()


def turn(role: str, text: str, media: Sequence[Medium] = ()) -> Turn:
    """A turn in chat form; each medium has a placeholder in front of the text."""
    return {'role': role, 'content': [*({'type': kind} for kind, _ in media), {'type': 'text', 'text': text}]}


def questions(turns: Sequence[tuple[str, str]], pictures: Sequence[Path] = ()) -> list[Question]:
    """One question for each `(question, answer)`, asked after the right answers to those before it.

    `pictures` holds one image for each of them, or none at all.
    """
    asked: list[Question] = []
    history: list[Turn] = []
    media = tuple(('image', picture) for picture in pictures)
    for index, (question, answer) in enumerate(turns):
        history = [*history, turn('user', question, media[index : index + 1])]
        asked.append(Question(history, answer, media[: index + 1]))
        history = [*history, turn('assistant', answer)]
    return asked


def number_questions(rounds: int, step: int = 1) -> list[Question]:
    """The last question of every held-out conversation of the text task."""
    return [questions(turns)[-1] for turns in number_turns(True, rounds, step)]


def colour_questions(folder: Path, rounds: int, count: int = 40) -> list[Question]:
    """The last question of `count` conversations about images that training never had; draws them into `folder`."""
    conversations = colour_turns(folder, 'held-out', count, rounds, random.Random(1))
    return [questions(*conversation)[-1] for conversation in conversations]


def row(question: Question) -> dict[str, Any]:
    """A training row for the template `Messages`."""
    media = {f'{kind}s': [path.name for its, path in question.media if its == kind] for kind in MEDIA_KINDS}
    return {'messages': [*question.turns, turn('assistant', question.answer)], **media}


def number_turns(held_out: bool, rounds: int, step: int = 1) -> list[list[tuple[str, str]]]:
    """All conversations of `rounds` turns in the phrasings for training, or in those held out.

    Every opening and every ending is trained, but a quarter of the ways to join them is not. With `step` -1 the same
    questions have other answers: the numbers go down.
    """
    conversations = []
    for first, opening in enumerate(OPENINGS):
        for second, ending in enumerate(ENDINGS):
            if ((first + second) % 4 == 0) is held_out:
                for number in range(10):
                    words = [NUMBERS[(number + step * place) % 10] for place in range(rounds + 1)]
                    asked = [f'{opening} {ending.format(words[0])}', *[AGAIN] * (rounds - 1)]
                    conversations.append(list(zip(asked, words[1:], strict=True)))
    return conversations


def write_text_rows(path: Path, step: int = 1) -> Path:
    """Writes the training rows of the text task as JSON, with one round and with two."""
    asked = [questions(turns)[-1] for rounds in (1, 2) for turns in number_turns(False, rounds, step)]
    return write_rows(path, asked)


def draw(path: Path, colour: str, generator: random.Random) -> Path:
    """Draws a circle or a square of a size, at a place and on a grey of chance."""
    grey = generator.randrange(0, 256)
    picture = Image.new('RGB', (SIDE, SIDE), (grey, grey, grey))
    width = generator.randrange(SIDE // 2, SIDE - 8)
    left, top = (generator.randrange(0, SIDE - width) for _ in range(2))
    brush = ImageDraw.Draw(picture)
    shape = generator.choice([brush.ellipse, brush.rectangle])
    shape((left, top, left + width, top + width), fill=tuple(c + generator.randrange(-25, 26) for c in COLOURS[colour]))
    picture.save(path)
    return path


def colour_turns(
    folder: Path, name: str, count: int, rounds: int, generator: random.Random
) -> list[tuple[list[tuple[str, str]], list[Path]]]:
    """`count` conversations about `rounds` new images each, every colour equally often in every place."""
    conversations = []
    orders = [generator.sample([*COLOURS] * (count // 4), count) for _ in range(rounds)]
    for index, colours in enumerate(zip(*orders, strict=True)):
        asked = [generator.choice(ASK_COLOUR), *[ASK_NEXT_PICTURE] * (rounds - 1)]
        pictures = [
            draw(folder / f'{name}-{rounds}-{index}-{place}.png', colour, generator)
            for place, colour in enumerate(colours)
        ]
        conversations.append((list(zip(asked, colours, strict=True)), pictures))
    return conversations


def write_picture_rows(folder: Path) -> Path:
    """Writes the training rows of the image task as JSON, beside their images: one image, two, and none."""
    generator = random.Random(0)
    conversations = colour_turns(folder, 'train', 96, 1, generator) + colour_turns(folder, 'train', 48, 2, generator)
    asked = [questions(*conversation)[-1] for conversation in conversations]
    asked += [questions(turns)[-1] for turns in number_turns(False, 1)]
    return write_rows(folder / 'rows.json', asked)


def write_rows(path: Path, asked: Sequence[Question]) -> Path:
    """Writes questions with their answers as training rows; their media lie beside them."""
    path.write_text(json.dumps([row(question) for question in asked]))
    return path
