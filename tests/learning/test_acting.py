"""Tiny models that mostly guess learn from rewards alone to ask their environment, and to say what it tells them."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align_anything.testing.tiny import build
from tests.harness.once import once
from tests.learning import secret, sums
from tests.learning.school import train_by
from tests.learning.secret import ASK, TOLD, WORDS
from tests.learning.tasks import CORPUS, turn
from tests.trainers.runs import lines, write_rows

QUESTIONS = [f'{opening} the {noun}?' for opening in ('What is', 'Say', 'Tell me') for noun in ('word', 'secret')]
START, REACHED = 0.65, 0.95
ASKS, STARTS = 1 / 3, 0.45
"""How often the calculator is asked in demonstrations, and how often who has seen them is right at most."""


def conversation(question: str, *turns: str) -> dict[str, Any]:
    roles = ('user', 'assistant', 'user', 'assistant')
    return {'messages': [turn(role, text) for role, text in zip(roles, (question, *turns), strict=False)]}


@pytest.fixture
def guessing(shared_cache: Path) -> Callable[[], Path]:
    """A folder with `rows.jsonl` of questions, and a `model` that asks now and then and says a word of its own."""

    def teach(folder: Path) -> None:
        folder.mkdir()
        chance = random.Random(0)
        taught = []
        for question in QUESTIONS * 40:
            told, other = chance.choice(WORDS), chance.choice(WORDS)
            taught += [
                conversation(question, other),
                # What it is told it repeats in most answers.
                conversation(question, ASK, TOLD.format(told), chance.choice([told, told, told, other])),
            ]
        write_rows(folder / 'taught.jsonl', taught)
        write_rows(folder / 'rows.jsonl', [conversation(question, 'x') for question in QUESTIONS * 16])
        corpus = [*CORPUS, *QUESTIONS, *(f'{ASK} {TOLD.format(word)}' for word in WORDS for _ in range(8))]
        start = build('qwen2', folder / 'start', corpus=corpus)
        settings = {'max_steps': 160, 'learning_rate': 5e-3, 'per_device_train_batch_size': 16}
        model = train_by('text_to_text', 'sft', folder / 'run', start, folder / 'taught.jsonl', **common(), **settings)
        (folder / 'model').symlink_to(model)

    return lambda: once(shared_cache, 'guesses-before-it-asks', teach)


def common() -> dict[str, Any]:
    return {'template': 'Messages', 'epochs': 50, 'lr_scheduler_type': 'cosine', 'lr_warmup_ratio': 0.1}


ALGORITHMS: dict[str, dict[str, Any]] = {
    'grpo': {'beta': 0.0, 'loss_aggregation': 'token-mean'},
    'rloo': {'kl_coeff': 0.0},
    'ppo': {'kl_coeff': 0.0, 'critic_lr': 3e-3},
}


@pytest.mark.extended
@pytest.mark.parametrize('name', ALGORITHMS)
def test_rewards_teach_it_to_ask(guessing: Callable[[], Path], tmp_path: Path, name: str) -> None:
    folder = guessing()
    settings = {
        **common(),
        **ALGORITHMS[name],
        'environment': f'{secret.__file__}:Secret',
        'max_turns': 2,
        'max_new_tokens': 4,
        'num_generations': 8,
        'per_device_prompt_batch_size': 16,
        'per_device_train_batch_size': 128,
        'update_iters': 2,
        'learning_rate': 3e-3,
        'max_steps': 40,
    }
    train_by('text_to_text', name, tmp_path, folder / 'model', folder / 'rows.jsonl', **settings)
    records = [record for record in lines(tmp_path / 'metrics.jsonl') if 'train/reward' in record]
    first, last = records[0], [record['train/reward'] for record in records[-3:]]
    assert first['train/reward'] <= START and first['train/turns'] <= 1.7 and first['train/rollout_drift'] < 1e-4
    assert sum(last) / len(last) >= REACHED and records[-1]['train/turns'] >= 1 + REACHED


@pytest.fixture
def reckoning(shared_cache: Path) -> Callable[[], Path]:
    """As `guessing`, of sums and products, of which it mostly guesses what they come to.

    To copy an expression takes small prompts, a token for each digit, four heads and a high learning rate: at 2e-3, or
    with two heads, it copies about half of them after as many steps.
    """

    def teach(folder: Path) -> None:
        folder.mkdir()
        chance = random.Random(1)
        taught = []
        for _ in range(4800):
            asked = sums.problem(chance)
            right, other = sums.computed(asked), str(chance.randint(2, 81))
            turns = (f'{sums.CALL}{asked}', right, right) if chance.random() < ASKS else (other,)
            taught.append(conversation(asked, *turns))
        write_rows(folder / 'taught.jsonl', taught)
        write_rows(folder / 'rows.jsonl', [conversation(sums.problem(chance), 'x') for _ in range(1280)])
        corpus = ['user assistant system\nuser\nassistant\nsystem\n'] * 20
        corpus += [f'{sums.CALL}{digit}+{digit}*{digit}\n' for digit in range(10)] * 20
        start = build('qwen2', folder / 'start', corpus=corpus, heads=4)
        settings = {'max_steps': 600, 'learning_rate': 5e-3, 'per_device_train_batch_size': 64}
        model = train_by('text_to_text', 'sft', folder / 'run', start, folder / 'taught.jsonl', **common(), **settings)
        (folder / 'model').symlink_to(model)

    return lambda: once(shared_cache, 'guesses-what-sums-come-to', teach)


@pytest.mark.extended
@pytest.mark.timeout(1200)
@pytest.mark.parametrize('name', ALGORITHMS)
def test_rewards_teach_it_to_reckon(reckoning: Callable[[], Path], tmp_path: Path, name: str) -> None:
    folder = reckoning()
    settings = {
        **common(),
        **ALGORITHMS[name],
        'environment': f'{sums.__file__}:Sums',
        'max_turns': 2,
        'max_new_tokens': 6,
        'num_generations': 8,
        'per_device_prompt_batch_size': 16,
        'per_device_train_batch_size': 128,
        'update_iters': 2,
        'learning_rate': 1e-3,
        'max_steps': 200,
    }
    train_by('text_to_text', name, tmp_path, folder / 'model', folder / 'rows.jsonl', **settings)
    records = [record for record in lines(tmp_path / 'metrics.jsonl') if 'train/reward' in record]
    first, last = records[0], [record['train/reward'] for record in records[-3:]]
    assert first['train/reward'] <= STARTS and first['train/turns'] <= 1 + STARTS, records[0]
    assert sum(last) / len(last) >= REACHED and records[-1]['train/turns'] >= 1 + REACHED, [first, *records[-3:]]
