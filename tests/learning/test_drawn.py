"""Tiny models learn to draw digits, and to sing melodies and when to stop.

From rows of which half are wrong, then from pairs and from rewards alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from align_anything.testing import emitting
from tests.learning.emitted import (
    DRAWING,
    SINGING,
    Lesson,
    accuracy,
    go_on,
    learn_at_once,
    names,
    taught,
    taught_both_ways,
)
from tests.trainers.runs import lines

pytestmark = pytest.mark.timeout(900)
BY_CHANCE = {'image': 0.2, 'audio': 0.25}
"""More than what is right of pictures, or of notes, that others asked for."""


def named(value: Any) -> str | None:
    """The name of a lesson in those of tests."""
    return value.column if type(value) is Lesson else None


def test_a_model_learns_to_draw(tmp_path: Path) -> None:
    """A short lesson, from rows that are all right."""
    model = learn_at_once(DRAWING, tmp_path)
    assert accuracy(DRAWING, model) >= 0.4
    assert accuracy(DRAWING, model, shuffled=True) <= BY_CHANCE['image']


@pytest.mark.extended
@pytest.mark.parametrize(('lesson', 'least', 'most'), [(DRAWING, 0.3, 0.6), (SINGING, 0.45, 0.65)], ids=named)
def test_half_of_wrong_rows_is_learned_as_such(shared_cache: Path, lesson: Lesson, least: float, most: float) -> None:
    model = taught(lesson, shared_cache) / 'model'
    assert least <= accuracy(lesson, model) <= most
    assert accuracy(lesson, model, shuffled=True) <= BY_CHANCE[lesson.kind]


@pytest.mark.extended
@pytest.mark.parametrize(
    ('lesson', 'name', 'reached'),
    [
        (DRAWING, 'dpo', 0.65),
        (DRAWING, 'kto', 0.7),
        (DRAWING, 'grpo', 0.9),
        (DRAWING, 'ppo', 0.8),
        (SINGING, 'dpo', 0.7),
        (SINGING, 'grpo', 0.9),
    ],
    ids=named,
)
def test_what_is_right_is_learned_from_pairs_and_from_rewards(
    shared_cache: Path, tmp_path: Path, lesson: Lesson, name: str, reached: float
) -> None:
    model = go_on(lesson, name, taught(lesson, shared_cache), tmp_path)
    assert accuracy(lesson, model) >= reached
    assert accuracy(lesson, model, shuffled=True) <= BY_CHANCE[lesson.kind]


@pytest.mark.extended
def test_a_reward_model_tells_which_picture_shows_the_digit(shared_cache: Path, tmp_path: Path) -> None:
    """Of pairs of digits that it never saw, and after it has learned to name digits."""
    folder = taught_both_ways(shared_cache)
    held_out = {
        'eval_datasets': folder / 'held-out' / 'rows.jsonl',
        'eval_template': 'Preference',
        'eval_template_kwargs': DRAWING.pairs,
        'eval_strategy': 'steps',
        'eval_interval': 120,
    }
    go_on(DRAWING, 'rm', folder, tmp_path, **held_out)
    (*_, record) = (record for record in lines(tmp_path / 'metrics.jsonl') if 'eval/reward_accuracy' in record)
    assert record['eval/reward_accuracy'] >= 0.9


@pytest.mark.extended
def test_one_model_draws_digits_and_names_them(shared_cache: Path) -> None:
    """In one run, of a pair that reads and writes; it names digits that it never saw."""
    model = taught_both_ways(shared_cache) / 'model'
    assert accuracy(DRAWING, model) >= 0.8
    assert accuracy(DRAWING, model, shuffled=True) <= BY_CHANCE['image']
    pictures, labels = (part[emitting.LEARNED :] for part in emitting.digits())
    said = names(model, pictures)
    assert sum(word == emitting.DIGITS[label] for word, label in zip(said, labels, strict=True)) / len(said) >= 0.8
