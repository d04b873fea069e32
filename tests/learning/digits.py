"""Pictures with a digit in two corners, too small to be read but from close; one of them is asked for.

The pictures are 320 pixels wide and the digits 8. A model whose processor brings pictures to 56 pixels has less than
two for a digit, and all 56 in a part that is looked into.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from align_anything.environments import Observation, Said
from align_anything.environments.worlds.zoom import RULES, Zoom

SIDE, DIGIT, SHOWN = 320, 8, 56
NAMES = 4
"""Digits from 0, of which others are left out."""
TRAINED = 560
"""How many of their drawings models are trained on; those behind them are held out."""
PLACES = {'west': (0, 0), 'east': (SIDE - DIGIT, 0)}
"""Words that the rules of zoom do not have, and where the corners are."""
CALLS = {'west': 'zoom(0, 0, 25, 25)', 'east': 'zoom(975, 0, 1000, 25)'}
ASKED = 'Which digit is {}?'
KWARGS = {'zooms': 1, 'pixels': SHOWN**2}
CORPUS = [
    *[f'{ASKED.format(name)}\n\n{RULES}' for name in PLACES] * 20,
    *['user assistant system\nuser\nassistant\nsystem\n'] * 20,
    *[f'{call}\n{digit}' for call in CALLS.values() for digit in range(NAMES)] * 20,
]
Scene = tuple[Image.Image, dict[str, int], str]


class Blind(Zoom):
    """As zoom, with nothing to be seen in any part."""

    def reset(self, row: Mapping[str, Any], seed: int) -> Observation:
        """Looks into a black picture in place of that of the row."""
        return super().reset({**row, 'messages': [user(Image.new('RGB', (SIDE, SIDE)), '')]}, seed)


def scenes(name: str, count: int, held_out: bool = False) -> Iterator[Scene]:
    """Pictures, their digits by place, and which of these is asked for."""
    chance = random.Random(name)
    drawn, names = load_digits(n_class=NAMES, return_X_y=True)
    known = range(TRAINED, len(names)) if held_out else range(TRAINED)
    for _ in range(count):
        canvas, digits = np.zeros((SIDE, SIDE), np.uint8), {}
        for place, (left, top) in PLACES.items():
            index = chance.choice(known)
            canvas[top : top + DIGIT, left : left + DIGIT] = drawn[index].reshape(DIGIT, DIGIT) / 16 * 255
            digits[place] = int(names[index])
        yield Image.fromarray(canvas).convert('RGB'), digits, chance.choice([*PLACES])


def prompts(folder: Path, name: str, count: int, held_out: bool = False) -> list[dict[str, Any]]:
    """Rows for the template `Messages`, their pictures beside them."""
    return [
        row(folder, f'{name}-{index}', [user(picture, ASKED.format(place)), str(digits[place])])
        for index, (picture, digits, place) in enumerate(scenes(name, count, held_out))
    ]


def demonstrations(folder: Path, count: int, looks: float) -> list[dict[str, Any]]:
    """Episodes of someone who looks in a share of them, and says any digit in all others."""
    chance, rows = random.Random(0), []
    for index, (picture, digits, place) in enumerate(scenes('demonstrations', count)):
        turns: list[Any] = [user(picture, f'{ASKED.format(place)}\n\n{RULES}')]
        if chance.random() < looks:
            turns += [CALLS[place], closeup(picture, place), str(digits[place])]
        else:
            turns += [str(chance.randrange(NAMES))]
        rows.append(row(folder, f'shown-{index}', turns))
    return rows


def closeups(folder: Path, count: int) -> list[dict[str, Any]]:
    """Rows with a digit that fills the picture, and its name."""
    return [
        row(folder, f'closeup-{index}', [closeup(picture, place), str(digits[place])])
        for index, (picture, digits, place) in enumerate(scenes('closeups', count))
    ]


def user(picture: Image.Image, text: str) -> dict[str, Any]:
    return {'role': 'user', 'content': [{'type': 'image', 'image': picture}, {'type': 'text', 'text': text}]}


def closeup(picture: Image.Image, place: str) -> dict[str, Any]:
    """What zoom shows of a place."""
    world = Zoom(**KWARGS)
    world.reset({'messages': [user(picture, '')]}, 0)
    told = world.step(Said(CALLS[place])).observation
    assert told is not None
    return told.messages[0]


def row(folder: Path, name: str, turns: list[Any]) -> dict[str, Any]:
    """A row of turns, of which texts are the assistant's; its pictures are written beside it."""
    messages, files = [], []
    for turn in turns:
        if isinstance(turn, str):
            messages.append({'role': 'assistant', 'content': [{'type': 'text', 'text': turn}]})
            continue
        content = []
        for part in turn['content']:
            if part['type'] == 'image':
                files.append(f'{name}-{len(files)}.png')
                part['image'].save(folder / files[-1])
            content.append({'type': 'image'} if part['type'] == 'image' else part)
        messages.append({**turn, 'content': content})
    return {'messages': messages, 'images': files}
