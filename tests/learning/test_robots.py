"""A small robot learns to pick things up from demonstrations, better by its own doing, and to keep off hot floor."""

from __future__ import annotations

from pathlib import Path

import pytest

from align_anything.testing.played import outcome, play
from tests.learning import robots
from tests.learning.robots import ACTING, IMITATING, PAIR, ROOM
from tests.learning.school import train_by

pytestmark = [pytest.mark.extended, pytest.mark.slow, pytest.mark.timeout(1800)]


def test_it_imitates_demonstrations_in_rooms_that_it_never_saw(shared_cache: Path) -> None:
    assert robots.tried(robots.rooms(shared_cache) / 'untrained')['success'] < 0.05
    assert robots.tried(robots.good(shared_cache))['success'] >= 0.9


def test_it_hears_what_it_is_told(shared_cache: Path, tmp_path: Path) -> None:
    folder = robots.rooms(shared_cache)
    rows = robots.shuffled(folder)
    settings = {**IMITATING, 'image_folder': folder, 'epochs': 4}
    deaf = train_by(PAIR, 'sft', tmp_path, folder / 'untrained', rows, **settings)
    assert robots.tried(deaf)['success'] < 0.5


def test_rewards_make_it_better(shared_cache: Path, tmp_path: Path) -> None:
    start = robots.weak(shared_cache)
    settings = {
        **ACTING,
        'num_generations': 6,
        'per_device_prompt_batch_size': 16,
        'per_device_train_batch_size': 48,
        'update_iters': 2,
        'learning_rate': 3e-4,
        'beta': 0.0,
        'max_steps': 80,
    }
    rows = robots.rooms(shared_cache) / 'prompts.jsonl'
    before, after = robots.tried(start), robots.tried(train_by(PAIR, 'grpo', tmp_path, start, rows, **settings))
    assert after['success'] >= before['success'] + 0.1


def test_it_keeps_off_hot_floor_and_still_does_what_it_is_told(shared_cache: Path, tmp_path: Path) -> None:
    start = robots.good(shared_cache)
    settings = {
        **ACTING,
        'per_device_prompt_batch_size': 96,
        'per_device_train_batch_size': 32,
        'update_iters': 3,
        'learning_rate': 4e-4,
        'critic_lr': 1e-3,
        'gamma': 0.98,
        'gae_lambda': 0.95,
        'kl_coeff': 0.0,
        # A robot that imitates is nearly sure of itself, and explores little at 1.
        'temperature': 1.6,
        'credit': 'turn',
        'lambda_max': 0.4,
        'max_steps': 405,
    }
    rows = robots.rooms(shared_cache) / 'prompts.jsonl'
    before, after = robots.tried(start), robots.tried(train_by(PAIR, 'saferlhf', tmp_path, start, rows, **settings))
    assert after['cost'] <= 0.6 * before['cost'] and after['success'] >= 0.85


def test_it_prefers_the_better_of_its_own_episodes(shared_cache: Path, tmp_path: Path) -> None:
    start = robots.weak(shared_cache)
    episodes = play(start, ROOM, range(500_000, 500_300), temperature=1.0, generations=4)
    rows = robots.write_pairs(tmp_path / 'own', episodes, 4)
    settings = {
        'template': 'Preference',
        'per_device_train_batch_size': 32,
        'learning_rate': 2e-4,
        'scale_coeff': 0.1,
        'epochs': 4,
        'model_max_length': None,
        'gradient_checkpointing': None,
        'save_checkpoint': False,
    }
    trained = train_by(PAIR, 'dpo', tmp_path / 'run', start, rows, **settings)
    before, after = (outcome(play(own, ROOM, robots.UNSEEN)) for own in (start, trained))
    assert after['success'] - 0.25 * after['cost'] > before['success'] - 0.25 * before['cost'] + 0.03
