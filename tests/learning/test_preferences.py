"""Tiny models that answer wrongly learn to prefer the right answer, by every algorithm and about every kind of media.

All start from a model that was taught the wrong answers, so that no likelihood is right before training. What is asked
for are the metrics that a user reads: over pairs that training never had, and over the same pairs with the media of the
other answer, where a model that looks prefers the wrong one. A cost model ranks by harm: to it the wrong answer is the
one that comes first.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from align_anything.cli.leaves import find_run
from align_anything.testing.tiny import build
from tests.harness.once import once
from tests.harness.pairwise import in_tiers
from tests.learning import judged, lessons, tasks
from tests.learning.preferences import LESSONS, OTHER, write_lesson
from tests.trainers.runs import lines, run, sft

FAMILIES = {
    'text_to_text': 'qwen2',
    'text_image_to_text': 'llava',
    'text_audio_to_text': 'qwen2_audio',
    'text_video_to_text': 'qwen2_vl',
    'any_to_text': 'qwen2_5_omni_thinker',
}
TAUGHT = {
    **dict.fromkeys(FAMILIES, {'max_steps': 60, 'learning_rate': 4e-3}),
    # Models that grow too sure of their answers hardly learn to judge any.
    **dict.fromkeys(('text_audio_to_text', 'text_video_to_text'), {'max_steps': 60, 'learning_rate': 3e-3}),
    'any_to_text': {'max_steps': 100, 'learning_rate': 3e-3},
}
JUDGES = {
    **dict.fromkeys(('text_to_text', 'text_image_to_text'), {'max_steps': 48, 'learning_rate': 3e-3}),
    **dict.fromkeys(('text_audio_to_text', 'text_video_to_text'), {'max_steps': 56, 'learning_rate': 5e-3}),
    'any_to_text': {'max_steps': 72, 'learning_rate': 5e-3},
}
"""What reward and cost models take, by pair."""
TRAINED: dict[str, dict[str, Any]] = {
    'rm': {},
    'cost_model': {
        # Before anything is learned, costs of zero tell least wrongly what is safe: it should not count for much.
        'scale_coeff': 0.1,
        **dict.fromkeys(('template', 'eval_template'), f'{judged.__file__}:Judged'),
    },
    'dpo': {'max_steps': 16},
    # With equal weights bad answers fall faster than good ones rise, and both may end below the divergence.
    'kto': {'max_steps': 16, 'scale_better': 2},
    'orpo': {'max_steps': 48},
    'simpo': {'max_steps': 32},
    'cpo': {'max_steps': 48},
}
ACCURACY, MARGIN = 0.9, 0.1
SEEDS = 42, 1, 2
"""Of the order of the rows and of new score heads.

Tiny models with a new head may sit at equal scores for all answers until they relate answer to medium, and some seeds
leave it only after many more steps: of these three, one has to. Everything that starts from a likelihood has one try.
"""


@pytest.fixture
def taught(shared_cache: Path) -> Callable[[str], Path]:
    """`taught(pair)` returns a folder with the rows of the pair's lesson and a `model` that answers them wrongly.

    It is taught once a run; all may keep encoded samples there.
    """

    def folder_of(pair: str) -> Path:
        def teach(folder: Path) -> None:
            folder.mkdir()
            write_lesson(folder, LESSONS[pair])
            start = build(FAMILIES[pair], folder / 'start', corpus=[*tasks.CORPUS, *lessons.CORPUS, *OTHER])
            wrong = '{chosen: rejected, rejected: chosen}'
            trains = dict.fromkeys(('freeze_vision_tower', 'freeze_audio_tower'), False)
            settings = {**common(folder), **trains, **TAUGHT[pair], 'eval_strategy': 'no'}
            argv = sft(folder / 'wrong', start, folder / 'train.jsonl', **settings, train_template_kwargs=wrong)
            ended = run(argv, 1, find_run(pair, 'sft')[0])
            assert ended[0].code == 0, ended[0].output
            (folder / 'model').symlink_to(folder / 'wrong' / 'slice_end')

        return once(shared_cache, f'taught-wrong-{pair}', teach)

    return folder_of


def common(folder: Path) -> dict[str, Any]:
    """The settings of all runs in a folder: towers stay frozen, as by default, and nothing is encoded twice."""
    held_out = [folder / name for name in ('held-out.jsonl', 'exchanged.jsonl') if (folder / name).exists()]
    return {
        'template': 'Preference',
        'eval_datasets': [str(path) for path in held_out],
        'eval_template': 'Preference',
        'sample_cache_dir': folder / 'samples',
        'per_device_train_batch_size': 16,
        'per_device_eval_batch_size': 32,
        'learning_rate': 3e-3,
        'lr_scheduler_type': 'cosine',
        'lr_warmup_ratio': 0.1,
        'model_max_length': 1024,
        'freeze_mm_proj': False,
        'save_checkpoint': False,
    }


def learned(folder: Path, output: Path) -> list[tuple[float, float]]:
    """Accuracy and margin of the held-out pairs, and then of those with the media of the other answer, at the end."""
    (*_, record) = (record for record in lines(output / 'metrics.jsonl') if 'eval/loss' in record)
    names = ['held-out.jsonl/', 'exchanged.jsonl/'] if (folder / 'exchanged.jsonl').exists() else ['']
    found = []
    for name in names:
        here = {key.removeprefix(f'eval/{name}'): value for key, value in record.items()}
        margin = here.get('reward_margin')
        if margin is None:
            margin = here['desirable_reward'] - here['undesirable_reward']
        found.append((here['reward_accuracy'], margin))
    return found


@pytest.mark.parametrize(
    ('pair', 'name'),
    in_tiers(product(LESSONS, TRAINED), [('text_to_text', 'dpo')]),
)
def test_a_model_learns_what_is_preferred(taught: Callable[[str], Path], tmp_path: Path, pair: str, name: str) -> None:
    folder, (its_pair, algorithm) = taught(pair), find_run(pair, name)
    judges = algorithm.scores == 'responses'
    settings = {**common(folder), **(JUDGES[pair] if judges else {}), **TRAINED[name], 'eval_strategy': 'steps'}
    settings['eval_interval'] = settings['max_steps']
    tried = []
    for seed in SEEDS if judges else SEEDS[:1]:
        argv = sft(tmp_path / f'{name}-{seed}', folder / 'model', folder / 'train.jsonl', **settings, seed=seed)
        ended = run(argv, 1, its_pair, algorithm=algorithm)
        assert ended[0].code == 0, ended[0].output
        tried.append(learned(folder, tmp_path / f'{name}-{seed}'))
        if has_learned(*tried[-1]):
            return
    raise AssertionError(f'accuracy and margin of what was held out, and of exchanged media, by seed: {tried}')


def has_learned(held_out: tuple[float, float], *exchanged: tuple[float, float]) -> bool:
    """Whether the right answers win, and lose where the media are those of the wrong ones."""
    accuracy, margin = held_out
    return (
        accuracy >= ACCURACY
        and margin >= MARGIN
        and all(accuracy <= 1 - ACCURACY and margin < 0 for accuracy, margin in exchanged)
    )
