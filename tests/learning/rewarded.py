"""Lessons for rewards alone: tiny models that are often wrong, and what they are right about afterwards.

They start from models that were taught to answer with one of two words, the right one twice as often: two of three
answers that they sample are right. Hearing takes more than that to learn, so who has to hear is taught the right
answers first, and then to doubt them. What a held-out prompt shows decides what is right there, and with the media of
the other answer it is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from align_anything.testing.tiny import build
from tests.harness.once import once
from tests.learning import lessons, tasks
from tests.learning.preferences import HELD_OUT, LESSONS, OTHER, TRAINED, with_media_of_the_other
from tests.learning.school import train_by
from tests.learning.tasks import Question
from tests.learning.test_preferences import FAMILIES
from tests.trainers.runs import lines, write_rows

START, REACHED = 0.8, 0.85
"""Share of right answers, at most before and at least after."""


DOUBT = {'max_steps': 12, 'learning_rate': 1e-3}
TAUGHT: dict[str, dict[str, dict[str, Any]]] = {
    **dict.fromkeys(LESSONS, {'doubted': {'max_steps': 60, 'learning_rate': 4e-3}}),
    'text_audio_to_text': {'right': {'max_steps': 60, 'learning_rate': 3e-3}, 'doubted': DOUBT},
    'any_to_text': {'right': {'max_steps': 70, 'learning_rate': 4e-3}, 'doubted': DOUBT},
}
"""On which rows models are taught, one after the other, and how."""
SHARED = {'any_to_text': 1.5}
"""How many times as many questions there are where two kinds of media share them."""


@pytest.fixture
def taught(shared_cache: Path) -> Callable[[str], Path]:
    """`taught(pair)` returns a folder with the rows of the pair's lesson and a `model` that is often wrong.

    It is taught once a run. Do not write into the folder.
    """

    def folder_of(pair: str) -> Path:
        def first_lesson(folder: Path) -> None:
            folder.mkdir()
            teach(folder, pair, TAUGHT[pair])

        return once(shared_cache, f'taught-doubted-{pair}', first_lesson)

    return folder_of


def teach(folder: Path, pair: str, stages: Mapping[str, Mapping[str, Any]], ends: Sequence[str] = ('',)) -> None:
    """Writes the rows of a lesson into a folder and teaches a `model` there, whose answers have one of `ends` each."""
    share = SHARED.get(pair, 1)
    asked = LESSONS[pair](folder, 'train', int(share * TRAINED))
    held_out = LESSONS[pair](folder, 'held-out', int(share * HELD_OUT))
    doubted = [
        replace(question, answer=word)
        for question in asked
        for word in (question.answer, question.answer, OTHER[question.answer])
    ]
    parts = {'train': asked, 'held-out': held_out, 'right': ended(asked, ends), 'doubted': ended(doubted, ends)}
    if asked[0].media:
        parts['exchanged'] = with_media_of_the_other(held_out)
    for name, questions in parts.items():
        write_rows(folder / f'{name}.jsonl', map(tasks.row, questions))
    model = build(FAMILIES[pair], folder / 'start', corpus=[*tasks.CORPUS, *lessons.CORPUS, *OTHER])
    for name, settings in stages.items():
        model = train(pair, 'sft', folder / f'taught-{name}', model, folder / f'{name}.jsonl', **settings)
    (folder / 'model').symlink_to(model)


def ended(asked: Sequence[Question], ends: Sequence[str]) -> list[Question]:
    """The questions, once with each of the ends behind their answers."""
    return [replace(question, answer=question.answer + end) for question in asked for end in ends]


def train(pair: str, name: str, output: Path, model: Path, rows: Path, **settings: Any) -> Path:
    """Trains a model by an algorithm and returns the folder of what came of it."""
    return train_by(pair, name, output, model, rows, **{**common(), **settings})


def common() -> dict[str, Any]:
    return {
        'template': 'Messages',
        'per_device_train_batch_size': 16,
        'lr_scheduler_type': 'cosine',
        'lr_warmup_ratio': 0.1,
        'model_max_length': 1024,
        'freeze_vision_tower': False,
        'freeze_audio_tower': False,
        'eval_strategy': 'no',
    }


def rollout_settings(held_out: Sequence[Path], **more: Any) -> dict[str, Any]:
    """The settings of online runs, `more` added: responses to 16 prompts a step, held-out ones rewarded at the end."""
    settings = {
        'eval_datasets': [str(path) for path in held_out],
        'eval_template': 'Messages',
        'eval_strategy': 'steps',
        'per_device_eval_batch_size': 24,
        'num_generations': 8,
        'per_device_prompt_batch_size': 16,
        'per_device_train_batch_size': 128,
        'update_iters': 2,
        'max_new_tokens': 4,
        'reward_functions': '[exact_match]',
        'learning_rate': 3e-3,
        'max_steps': 64,
        **more,
    }
    return {**settings, 'eval_interval': settings['max_steps']}


ALGORITHMS: dict[str, dict[str, Any]] = {
    'grpo': {'beta': 0.0, 'loss_aggregation': 'token-mean'},
    **dict.fromkeys(('ppo', 'ppo_vllm', 'saferlhf'), {'kl_coeff': 0.0, 'critic_lr': 3e-3}),
}


SMALL = {'per_device_prompt_batch_size': 8, 'per_device_train_batch_size': 64, 'max_steps': 48}
STEPS: dict[str, dict[str, Any]] = {
    'text_audio_to_text': {**SMALL, 'max_steps': 40, 'learning_rate': 2e-3},
    'text_video_to_text': {'max_steps': 40, 'learning_rate': 2e-3},
    'any_to_text': {**SMALL, 'learning_rate': 1e-3},
}
"""What other lessons take than those of texts and images."""


def learns(folder: Path, output: Path, pair: str, name: str, **more: Any) -> None:
    """Asserts that the model in `folder`, of `taught`, learns its lesson by an algorithm, settings `more` added.

    The run writes into `output`.
    """
    held_out = [folder / part for part in ('held-out.jsonl', 'exchanged.jsonl') if (folder / part).exists()]
    settings = {**ALGORITHMS[name], **rollout_settings(held_out, **STEPS.get(pair, {}), **more)}
    train(pair, name, output, folder / 'model', folder / 'train.jsonl', **settings)
    records = lines(output / 'metrics.jsonl')
    first = next(record for record in records if 'train/reward' in record)
    assert first['train/reward'] <= START
    (*_, last) = (record for record in records if 'eval/reward' in record)
    part = 'eval/held-out.jsonl/reward' if len(held_out) > 1 else 'eval/reward'
    assert last[part] >= REACHED
    if len(held_out) > 1:
        assert last['eval/exchanged.jsonl/reward'] <= 1 - REACHED
