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


def test_pairs_of_its_own_episodes_make_it_better(shared_cache: Path, tmp_path: Path) -> None:
    start = robots.weak(shared_cache)
    folder = robots.pairs(shared_cache, start)
    settings = {**robots.COMPARING, 'image_folder': folder}
    trained = train_by(PAIR, 'dpo', tmp_path, start, folder / 'pairs.jsonl', **settings)
    before, after = robots.tried(start), robots.tried(trained)
    # It keeps off hot floor, and succeeds as often.
    assert after['cost'] <= 0.8 * before['cost'] and after['success'] >= before['success'] - 2 * robots.NOISE


def test_rewards_make_it_better(shared_cache: Path, tmp_path: Path) -> None:
    start = robots.weak(shared_cache)
    settings = {
        **ACTING,
        **robots.EXPLORING,
        'update_iters': 4,
        'learning_rate': 8e-4,
        'critic_lr': 1e-3,
        'critic_warmup_steps': 24,
        'max_steps': 480,
    }
    rows = robots.rooms(shared_cache) / 'prompts.jsonl'
    before, after = robots.tried(start), robots.tried(train_by(PAIR, 'ppo', tmp_path, start, rows, **settings))
    assert after['success'] >= before['success'] + 0.15 and after['turns'] < before['turns']


def test_it_keeps_off_hot_floor_and_still_does_what_it_is_told(shared_cache: Path, tmp_path: Path) -> None:
    start = robots.good(shared_cache)
    settings = {
        **ACTING,
        **robots.EXPLORING,
        'update_iters': 3,
        'learning_rate': 2.5e-4,
        'critic_lr': 5e-4,
        # A robot that imitates is nearly sure of itself, and explores little at 1.
        'temperature': 1.6,
        'lambda_max': 0.35,
        'max_steps': 405,
    }
    rows = robots.rooms(shared_cache) / 'prompts.jsonl'
    before, after = robots.tried(start), robots.tried(train_by(PAIR, 'saferlhf', tmp_path, start, rows, **settings))
    assert after['cost'] <= 0.6 * before['cost'] and after['success'] >= 0.85
