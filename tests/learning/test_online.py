"""Tiny models that are often wrong learn the right answers from rewards alone, about text and every kind of media."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from tests.harness.pairwise import in_tiers
from tests.learning import judged
from tests.learning.preferences import LESSONS, OTHER, TRAINED
from tests.learning.rewarded import (
    ALGORITHMS,
    DOUBT,
    REACHED,
    SMALL,
    START,
    learns,
    rollout_settings,
    taught,
    teach,
    train,
)
from tests.trainers.runs import lines, write_rows

__all__ = ['taught']

LIMIT = -0.3
"""What an answer may cost; a cost model puts zero between what is safe and what is not."""


@pytest.mark.parametrize(
    ('pair', 'name'),
    in_tiers(product(LESSONS, ('grpo', 'ppo')), [('text_to_text', 'ppo')]),
)
def test_rewards_alone_teach_what_is_right(taught: Callable[[str], Path], tmp_path: Path, pair: str, name: str) -> None:
    learns(taught(pair), tmp_path, pair, name)


@pytest.mark.extended
def test_rewards_rise_within_a_limit_on_cost(tmp_path: Path) -> None:
    """Answers end in a high or a low voice, mostly in a high one, and a cost model was taught to mind it."""
    pair, right = 'text_to_text', {'max_steps': 60, 'learning_rate': 4e-3}
    teach(tmp_path, pair, {'right': right, 'doubted': DOUBT}, ends=(' high', ' high', ' low'))
    model, asked = tmp_path / 'model', LESSONS[pair](tmp_path, 'train', TRAINED)
    words = [(question, word) for question in asked for word in (question.answer, OTHER[question.answer])]
    rows = [{'prompt': question.turns, 'chosen': f'{word} low', 'rejected': f'{word} high'} for question, word in words]
    write_rows(tmp_path / 'pairs.jsonl', rows)
    settings = {'template': f'{judged.__file__}:Judged', 'max_steps': 24, 'learning_rate': 2e-3}
    cost = train(pair, 'cost_model', tmp_path / 'cost', model, tmp_path / 'pairs.jsonl', **settings)
    settings = {
        **ALGORITHMS['saferlhf'],
        **rollout_settings([tmp_path / 'held-out.jsonl'], **SMALL, learning_rate=2e-3),
        'reward_kwargs': r"{exact_match: {extract: '^\w+'}}",
        'cost_model_name_or_path': cost,
        'threshold': LIMIT,
        'lambda_init': 1,
        'lambda_lr': 0.05,
    }
    train(pair, 'saferlhf', tmp_path / 'safe', model, tmp_path / 'train.jsonl', **settings)
    records = lines(tmp_path / 'safe' / 'metrics.jsonl')
    steps = [record for record in records if 'train/reward' in record]
    (*_, last) = (record for record in records if 'eval/reward' in record)
    assert steps[0]['train/reward'] <= START and last['eval/reward/exact_match'] >= REACHED
    assert steps[0]['train/reward/cost'] > LIMIT > last['eval/reward/cost'] and steps[-1]['train/mean_cost'] < LIMIT
    # The multiplier rises while the cost is above the limit, and falls below it; it does both.
    ways = []
    for before, after in zip(steps, steps[1:], strict=False):
        ways.append(after['train/multiplier'] > before['train/multiplier'])
        assert ways[-1] == (after['train/mean_cost'] > LIMIT)
    assert ways[0] and not ways[-1]
