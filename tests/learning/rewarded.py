"""Lessons for rewards alone: tiny models that are often wrong, and what they are right about afterwards.

They start from models that were taught to answer with one of two words, the right one twice as often: two of three
answers that they draw are right. What a held-out prompt shows decides what is right there, and with the media of the
other answer it is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from align_anything.cli.leaves import find_run
from align_anything.models.tiny import build
from tests.learning import lessons, tasks
from tests.learning.preferences import HELD_OUT, LESSONS, OTHER, TRAINED, with_media_of_the_other
from tests.learning.test_preferences import FAMILIES
from tests.trainers.runs import lines, run, sft, write_rows

START, REACHED = 0.8, 0.9
"""Share of right answers, at most before and at least after."""


@pytest.fixture(scope='module')
def taught(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`taught(pair)` returns a folder with the rows of the pair's lesson and a `model` that is often wrong."""
    done: dict[str, Path] = {}

    def folder_of(pair: str) -> Path:
        if pair not in done:
            done[pair] = folder = tmp_path_factory.mktemp(pair)
            asked = LESSONS[pair](folder, 'train', TRAINED)
            held_out = LESSONS[pair](folder, 'held-out', HELD_OUT)
            either = [
                replace(question, answer=word)
                for question in asked
                for word in (question.answer, question.answer, OTHER[question.answer])
            ]
            parts = {'train': asked, 'held-out': held_out, 'either': either}
            if asked[0].media:
                parts['exchanged'] = with_media_of_the_other(held_out)
            for name, questions in parts.items():
                write_rows(folder / f'{name}.jsonl', map(tasks.row, questions))
            start = build(FAMILIES[pair], folder / 'start', corpus=[*tasks.CORPUS, *lessons.CORPUS, *OTHER])
            settings = {**common(), 'max_steps': 60, 'learning_rate': 4e-3, 'eval_strategy': 'no'}
            argv = sft(folder / 'sft', start, folder / 'either.jsonl', **settings)
            (ended,) = run(argv, 1, find_run(pair, 'sft')[0])
            assert ended.code == 0, ended.output
            (folder / 'model').symlink_to(folder / 'sft' / 'slice_end')
        return done[pair]

    return folder_of


def common() -> dict[str, Any]:
    return {
        'template': 'Messages',
        'per_device_train_batch_size': 16,
        'lr_scheduler_type': 'cosine',
        'lr_warmup_ratio': 0.1,
        'model_max_length': 1024,
        'freeze_vision_tower': False,
        'freeze_audio_tower': False,
    }


ALGORITHMS: dict[str, dict[str, Any]] = {
    'grpo': {'num_generations': 8, 'beta': 0.0, 'loss_aggregation': 'token-mean'},
    **dict.fromkeys(('ppo', 'ppo_vllm'), {'num_generations': 8, 'kl_coeff': 0.0, 'critic_lr': 3e-3}),
}


def learns(folder: Path, pair: str, name: str, **more: Any) -> None:
    """Asserts that the model in `folder`, of `taught`, learns its lesson by an algorithm, settings `more` added."""
    its_pair, algorithm = find_run(pair, name)
    held_out = [folder / part for part in ('held-out.jsonl', 'exchanged.jsonl') if (folder / part).exists()]
    settings = {
        **common(),
        **ALGORITHMS[name],
        'eval_datasets': [str(path) for path in held_out],
        'eval_template': 'Messages',
        'per_device_eval_batch_size': 24,
        'per_device_prompt_batch_size': 16,
        'per_device_train_batch_size': 128,
        'update_iters': 2,
        'max_new_tokens': 4,
        'reward_functions': '[exact_match]',
        'learning_rate': 3e-3,
        'max_steps': 64,
        'eval_strategy': 'steps',
        'eval_interval': 64,
        **more,
    }
    (ended,) = run(
        sft(folder / name, folder / 'model', folder / 'train.jsonl', **settings), 1, its_pair, algorithm=algorithm
    )
    assert ended.code == 0, ended.output
    records = lines(folder / name / 'metrics.jsonl')
    first = next(record for record in records if 'train/reward' in record)
    assert first['train/reward'] <= START
    (*_, last) = (record for record in records if 'eval/reward' in record)
    part = 'eval/held-out.jsonl/reward' if len(held_out) > 1 else 'eval/reward'
    assert last[part] >= REACHED
    if len(held_out) > 1:
        assert last['eval/exchanged.jsonl/reward'] <= 1 - REACHED
