"""A small robot learns to pick things up from demonstrations, and by its own doing to keep off hot floor.

Without true missions it does not learn which thing is meant.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.learning import robots
from tests.learning.robots import ACTING, PAIR
from tests.learning.school import train_by

pytestmark = [pytest.mark.extended, pytest.mark.slow, pytest.mark.timeout(1800)]


def test_it_imitates_demonstrations_in_rooms_that_it_never_saw(shared_cache: Path) -> None:
    assert robots.tried(robots.rooms(shared_cache) / 'untrained')['success'] < 0.05
    assert robots.tried(robots.good(shared_cache))['success'] >= 0.9


def test_missions_of_other_rooms_teach_it_nothing_of_them(shared_cache: Path) -> None:
    # It learns to pick things up, and of three it cannot know which one is meant.
    success = robots.tried(robots.confused(shared_cache))['success']
    assert 0.2 <= success <= 1 / 3 + 3 * robots.NOISE


def test_it_keeps_off_hot_floor_and_still_does_what_it_is_told(shared_cache: Path, tmp_path: Path) -> None:
    start = robots.good(shared_cache)
    settings = {
        **ACTING,
        'per_device_prompt_batch_size': 96,
        'per_device_train_batch_size': 32,
        'update_iters': 3,
        'learning_rate': 2.5e-4,
        'critic_lr': 5e-4,
        'gamma': 0.98,
        'gae_lambda': 0.95,
        'kl_coeff': 0.0,
        # A robot that imitates is nearly sure of itself, and explores little at 1.
        'temperature': 1.6,
        'credit': 'turn',
        'lambda_max': 0.35,
        'max_steps': 405,
    }
    rows = robots.rooms(shared_cache) / 'prompts.jsonl'
    before, after = robots.tried(start), robots.tried(train_by(PAIR, 'saferlhf', tmp_path, start, rows, **settings))
    assert after['cost'] <= 0.6 * before['cost'] and after['success'] >= 0.85
