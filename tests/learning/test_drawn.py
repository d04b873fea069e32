"""Tiny models learn to draw digits: from rows of which half are wrong, then from pairs and from rewards alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from align_anything.testing import emitting
from tests.learning.emitted import DRAWING, accuracy, go_on, learn_at_once, names, taught, taught_both_ways
from tests.trainers.runs import lines

pytestmark = pytest.mark.timeout(900)
BY_CHANCE = 0.2
"""More than what is right of pictures that others asked for."""


def test_a_model_learns_to_draw(tmp_path: Path) -> None:
    """A short lesson, from rows that are all right."""
    model = learn_at_once(DRAWING, tmp_path)
    assert accuracy(DRAWING, model) >= 0.4
    assert accuracy(DRAWING, model, shuffled=True) <= BY_CHANCE


@pytest.mark.extended
def test_half_of_wrong_rows_is_learned_as_such(shared_cache: Path) -> None:
    model = taught(DRAWING, shared_cache) / 'model'
    assert 0.3 <= accuracy(DRAWING, model) <= 0.6
    assert accuracy(DRAWING, model, shuffled=True) <= BY_CHANCE


@pytest.mark.extended
@pytest.mark.parametrize(('name', 'reached'), [('dpo', 0.65), ('kto', 0.5), ('grpo', 0.9), ('ppo', 0.6)])
def test_what_is_right_is_learned_from_pairs_and_from_rewards(
    shared_cache: Path, tmp_path: Path, name: str, reached: float
) -> None:
    model = go_on(DRAWING, name, taught(DRAWING, shared_cache), tmp_path)
    assert accuracy(DRAWING, model) >= reached
    assert accuracy(DRAWING, model, shuffled=True) <= BY_CHANCE


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
    assert accuracy(DRAWING, model, shuffled=True) <= BY_CHANCE
    pictures, labels = (part[emitting.LEARNED :] for part in emitting.digits())
    said = names(model, pictures)
    assert sum(word == emitting.DIGITS[label] for word, label in zip(said, labels, strict=True)) / len(said) >= 0.8
