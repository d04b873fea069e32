"""A tiny model of each family that sees learns to name colours, by the trainer that users call.

Chance is 1/4. The rows mix one picture, two pictures in two turns, and text alone (the task of test_text.py).
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from align_anything.models.tiny import build
from tests.learning.school import accuracy, ask, open_picture_model, train
from tests.learning.tasks import CORPUS, colour_questions, number_questions, write_picture_rows

REQUIRED = 0.95
EPOCHS = {
    'gemma3': 8,
    'llava': 8,
    'llava_next': 8,
    'qwen2_vl': 8,
    'qwen2_5_vl': 8,
    'qwen3_vl': 8,
    # No file of its own: the default rules.
    'internvl': 14,
}


@pytest.mark.parametrize('family', EPOCHS)
def test_a_family_learns_to_see(tmp_path: Path, family: str) -> None:
    learn(tmp_path, family, epochs=EPOCHS[family])


def test_two_ranks_with_partitioned_weights_learn_to_see(tmp_path: Path) -> None:
    learn(tmp_path, 'llava', epochs=8, ranks=2, ds_cfgs='ds_z3_config.json')


def learn(folder: Path, family: str, **settings: Any) -> None:
    """Trains a tiny model and examines it on new pictures, on new phrasings and on the wrong pictures."""
    rows = write_picture_rows(folder)
    start = build(family, folder / 'model', corpus=list(CORPUS))
    end = train(folder / 'run', start, rows, pictures=True, learning_rate=3e-3, **settings)
    model, processor = open_picture_model(end)
    one, two, none = colour_questions(folder, 1), colour_questions(folder, 2), number_questions(1)
    for asked in (one, two, none):
        assert accuracy(ask(model, processor, asked), asked) >= REQUIRED

    # Each question with the picture of another: what is right by luck stays right, and nothing else does.
    others = random.Random(2).sample(one, len(one))
    swapped = [replace(mine, pictures=other.pictures) for mine, other in zip(one, others, strict=True)]
    luck = accuracy([other.answer for other in others], one)
    assert 0.1 < luck < 0.4
    answers = ask(model, processor, swapped)
    assert accuracy(answers, others) >= REQUIRED
    assert accuracy(answers, one) <= luck + (1 - REQUIRED)
