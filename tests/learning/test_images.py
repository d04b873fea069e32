"""A tiny model of each family that sees learns to name colours, by the trainer that users call.

Chance is 1/4. The rows mix one image, two images in two turns, and text alone (the task of test_text.py); families
that are less used get rows with one image, and fewer of them. Those that read videos too are in test_videos.py.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from align_anything.testing.tiny import build
from tests.harness.pairwise import first_of
from tests.learning.lessons import colours, exchanged, rotated
from tests.learning.school import accuracy, ask, examine, open_media_model, teach, train
from tests.learning.tasks import CORPUS, colour_questions, number_questions, write_picture_rows
from tests.trainers.runs import IMAGE

REQUIRED = 0.95
EPOCHS = {'llava': 8, 'qwen2_5_vl': 8}
STEPS = {
    'gemma3': 60,
    'llava_next': 40,
    'qwen2_vl': 40,
    'qwen3_vl': 40,
    'gemma4': 150,
    'idefics2': 100,
    'llava_interleave': 40,
    'mllama': 40,
    'paligemma': 100,
    # Trained on codes of images, asked with their pixels.
    'chameleon': 100,
    'emu3': 100,
    'janus': 60,
    # No file of their own: the default rules.
    'idefics3': 60,
    'internvl': 100,
}
# They do not learn at the rate of the others; Gemma 4 has most tokens to an image, and smaller batches.
SLOWER = {
    'gemma4': {'learning_rate': 4e-3, 'per_device_train_batch_size': 8},
    **dict.fromkeys(('idefics2', 'paligemma'), {'learning_rate': 3e-3}),
}


@pytest.mark.parametrize('family', first_of(STEPS, 'qwen2_vl'))
def test_a_family_learns_to_see_one_image(tmp_path: Path, family: str) -> None:
    settings = {'max_steps': STEPS[family], **SLOWER.get(family, {})}
    learned = teach(tmp_path, family, colours(tmp_path, 'train', 192), IMAGE, **settings)
    asked = colours(tmp_path, 'held-out', 24)
    examine(*learned, asked, exchanged(asked, rotated(asked), 'image'))


@pytest.mark.extended
@pytest.mark.parametrize('family', EPOCHS)
def test_a_family_learns_to_see(tmp_path: Path, family: str) -> None:
    learn(tmp_path, family, epochs=EPOCHS[family])


@pytest.mark.extended
def test_two_ranks_with_partitioned_weights_learn_to_see(tmp_path: Path) -> None:
    rows, settings = colours(tmp_path, 'train', 192), {'ranks': 2, 'ds_cfgs': 'ds_z3_config.json', 'max_steps': 40}
    learned = teach(tmp_path, 'llava', rows, IMAGE, **settings)
    asked = colours(tmp_path, 'held-out', 24)
    examine(*learned, asked, exchanged(asked, rotated(asked), 'image'))


def learn(folder: Path, family: str, **settings: Any) -> None:
    """Trains a tiny model and examines it on new images, on new phrasings and on the wrong images."""
    rows = write_picture_rows(folder)
    start = build(family, folder / 'model', corpus=list(CORPUS))
    end = train(folder / 'run', start, rows, pair=IMAGE, learning_rate=3e-3, **settings)
    model, processor = open_media_model(end)
    one, two, none = colour_questions(folder, 1), colour_questions(folder, 2), number_questions(1)
    for asked in (one, two, none):
        assert accuracy(ask(model, processor, asked), asked) >= REQUIRED

    # Each question with the image of another: what is right by luck stays right, and nothing else does.
    others = random.Random(2).sample(one, len(one))
    luck = accuracy([other.answer for other in others], one)
    assert 0.1 < luck < 0.4
    answers = ask(model, processor, exchanged(one, others, 'image'))
    assert accuracy(answers, others) >= REQUIRED
    assert accuracy(answers, one) <= luck + (1 - REQUIRED)
