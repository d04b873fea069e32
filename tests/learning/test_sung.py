"""Tiny models learn to sing melodies, and when to stop: from half wrong rows, from pairs and from rewards alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.learning.emitted import SINGING, accuracy, go_on, taught

pytestmark = pytest.mark.timeout(900)
BY_CHANCE = 0.25
"""More than what is right of the notes that others asked for."""


@pytest.mark.extended
def test_half_of_wrong_notes_is_learned_as_such(shared_cache: Path) -> None:
    model = taught(SINGING, shared_cache) / 'model'
    assert 0.45 <= accuracy(SINGING, model) <= 0.65
    assert accuracy(SINGING, model, shuffled=True) <= BY_CHANCE


@pytest.mark.extended
@pytest.mark.parametrize(('name', 'reached'), [('dpo', 0.7), ('grpo', 0.9)])
def test_what_is_right_is_learned_from_pairs_and_from_rewards(
    shared_cache: Path, tmp_path: Path, name: str, reached: float
) -> None:
    model = go_on(SINGING, name, taught(SINGING, shared_cache), tmp_path)
    assert accuracy(SINGING, model) >= reached
    assert accuracy(SINGING, model, shuffled=True) <= BY_CHANCE
