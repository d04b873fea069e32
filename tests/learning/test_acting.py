"""A tiny model that mostly guesses learns from rewards to call a calculator, and answers what that tells it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align_anything.environments.tools import schema_of
from align_anything.environments.worlds.calculator import calculate
from align_anything.testing.tiny import build
from align_anything.testing.tiny.published import qwen3
from tests.harness.once import once
from tests.learning.school import train_by
from tests.learning.tasks import turn
from tests.trainers.runs import lines, write_rows

REACHED = 0.95
CALLS = 4
"""One of so many answers that are taught is a call; the others guess."""
ASKED = [
    (f'{a} {op} {b}', str(a + b if op == '+' else a * b)) for a in range(2, 10) for b in range(2, 10) for op in '+*'
]
TOOL = schema_of(calculate)


def row(question: str, answer: str, called: bool = False) -> dict[str, Any]:
    call = {'type': 'function', 'function': {'name': 'calculate', 'arguments': {'expression': question}}}
    calling = [
        {'role': 'assistant', 'content': '', 'tool_calls': [call]},
        {'role': 'tool', 'name': 'calculate', 'content': answer},
    ]
    messages = [turn('user', question), *(calling if called else []), turn('assistant', answer)]
    return {'messages': messages, **({'tools': json.dumps([TOOL])} if called is not None else {})}


@pytest.fixture
def guessing(shared_cache: Path) -> Callable[[], Path]:
    """The folder of a `model` that knows how to call and mostly guesses, and of `rows.jsonl` of questions."""

    def teach(folder: Path) -> None:
        folder.mkdir()
        chance = random.Random(0)
        rows = [row(question, answer, called=True) for question, answer in ASKED]
        rows += [row(question, str(chance.randrange(4, 82))) for question, _ in ASKED for _ in range(CALLS - 1)]
        write_rows(folder / 'taught.jsonl', rows)
        asked = [{'messages': row(question, answer)['messages']} for question, answer in ASKED]
        write_rows(folder / 'rows.jsonl', asked)
        (folder / 'template.jinja').write_text(qwen3(thinks=False))
        shown = f'system\n\nYou may call these tools:\n<tools>\n{json.dumps(TOOL)}\n</tools>'
        call = '<tool_call>\n{"name": "calculate", "arguments": {"expression": "'
        corpus = [shown, *[f'{call}2 + 3"}}}}\n</tool_call> <tool_response>\n5\n</tool_response> user assistant'] * 8]
        start = build('qwen3', folder / 'start', corpus=[*corpus, *[shown] * 8, *(str(n) for n in range(100))])
        settings = {'max_steps': 150, 'learning_rate': 4e-3, 'chat_template': folder / 'template.jinja'}
        model = train_by(
            'text_to_text', 'sft', folder / 'taught', start, folder / 'taught.jsonl', **common(), **settings
        )
        (folder / 'model').symlink_to(model)

    return lambda: once(shared_cache, 'guesses-before-it-calls', teach)


def common() -> dict[str, Any]:
    return {
        'template': 'Messages',
        'per_device_train_batch_size': 32,
        'epochs': 50,
        'lr_scheduler_type': 'cosine',
        'lr_warmup_ratio': 0.1,
        'model_max_length': 512,
    }


ALGORITHMS = {
    'grpo': {'beta': 0.0, 'loss_aggregation': 'token-mean'},
    'rloo': {'kl_coeff': 0.0},
    'ppo': {'kl_coeff': 0.0, 'critic_lr': 3e-3},
}


@pytest.mark.extended
@pytest.mark.parametrize('name', ALGORITHMS)
def test_rewards_teach_it_to_call(guessing: Callable[[], Path], tmp_path: Path, name: str) -> None:
    folder = guessing()
    settings = {
        **common(),
        **ALGORITHMS[name],
        'environment': 'calculator',
        'max_turns': 2,
        'max_new_tokens': 24,
        'num_generations': 8,
        'per_device_prompt_batch_size': 16,
        'per_device_train_batch_size': 128,
        'update_iters': 2,
        'learning_rate': 2e-3,
        'max_steps': 60,
        'log_completions': 10,
    }
    train_by('text_to_text', name, tmp_path, folder / 'model', folder / 'rows.jsonl', **settings)
    records = [record for record in lines(tmp_path / 'metrics.jsonl') if 'train/reward' in record]
    first, last = records[0], records[-1]
    assert first['train/success'] <= 0.6 and first['train/rollout_drift'] < 1e-4
    assert last['train/success'] >= REACHED and last['train/tool_calls'] >= REACHED
    assert last['train/turns'] == pytest.approx(2, abs=0.1)
