"""A run that draws: what functions and a reward model judge is what is written down and shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageStat

from align_anything.cli.leaves import find_run
from align_anything.models.pretrained_model import load_spec
from align_anything.testing import emitting
from tests.harness.once import once
from tests.trainers.runs import Ended, lines, run, sft, write_rows
from tests.trainers.test_completions import Page
from tests.trainers.test_judging import judge_of
from tests.trainers.test_online import argv, metrics_of


def trained_to_judge(model: Path, out: Path) -> Ended:
    rows = emitting.write_digit_rows(out.with_name('digits'), 8)
    changes = {
        'train_template': 'Preference',
        'train_template_kwargs': '{prompt: question, chosen: picture, rejected: rejected, answers: image}',
        'model_max_length': 256,
        'max_steps': 4,
        'per_device_train_batch_size': 2,
        'learning_rate': 1e-3,
        'log_interval': 1,
    }
    pair, algorithm = find_run('text_to_image', 'rm')
    (ended,) = run(sft(out, model, rows, **changes), 1, pair, algorithm=algorithm)
    return ended


def test_a_reward_model_learns_from_pictures_alone(tiny: Callable[..., Path], tmp_path: Path) -> None:
    ended = trained_to_judge(tiny('llava'), tmp_path / 'out')
    assert ended.code == 0, ended.output
    losses = [record['train/loss'] for record in lines(tmp_path / 'out' / 'metrics.jsonl')]
    assert len(losses) == 4 and len(set(losses)) == 4
    assert not (tmp_path / 'out' / 'skipped_samples.jsonl').exists()


def test_one_that_sees_no_pictures_is_refused(tiny: Callable[..., Path], tmp_path: Path) -> None:
    ended = trained_to_judge(tiny('llama'), tmp_path / 'out')
    assert ended.code == 2 and "takes no image, which the pair 'text_to_image' is about" in ended.output, ended.output


def test_pictures_are_judged_and_kept(tiny: Callable[..., Path], shared_cache: Path, tmp_path: Path) -> None:
    model = once(shared_cache, 'inspected-drawing', lambda folder: emitting.drawing_model(folder, layers=1, hidden=32))
    judge, out = judge_of(tmp_path / 'judge', tiny('llava')), tmp_path / 'out'
    rows = [{'prompt': f'draw the digit {word}'} for word in emitting.DIGITS[:2]]
    changes = {
        'train_datasets': write_rows(tmp_path / 'rows.jsonl', rows),
        'train_template': 'Prompts',
        'reward_functions': '[brightness]',
        'reward_model_name_or_path': judge,
        'max_new_tokens': 24,
        'num_generations': 3,
        'max_steps': 2,
        'log_completions': 1,
        'eval_strategy': 'no',
        'log_interval': 1,
    }
    pair, algorithm = find_run('text_to_image', 'grpo')
    (ended,) = run(argv(tmp_path, out, model, **changes), 1, pair, algorithm=algorithm)
    assert ended.code == 0, ended.output
    records = lines(out / 'completions.jsonl')
    assert len(records) == 6 and not (out / 'unread_responses.jsonl').exists()
    pictures = [Image.open(out / name) for record in records for name in record['media']]
    assert [picture.size for picture in pictures] == [(emitting.SIDE, emitting.SIDE)] * 6
    for record, picture in zip(records, pictures, strict=True):
        luma = ImageStat.Stat(picture.convert('L')).mean[0] / 255
        assert record['rewards']['brightness'] == pytest.approx(luma, abs=1e-6)
        assert record['reward'] == pytest.approx(sum(record['rewards'].values()), abs=1e-5)
    # Pictures that differ are judged differently by a model that sees them.
    seen = {picture.tobytes(): record['rewards']['model'] for record, picture in zip(records, pictures, strict=True)}
    assert len(seen) > 1 and len(set(seen.values())) > 1
    assert [tag for tag, _ in Page(out / 'completions.html').tags].count('img') == 6
    (record,) = metrics_of(out)
    assert record['train/reward/brightness'] == pytest.approx(
        sum(record['rewards']['brightness'] for record in records) / 6, abs=1e-6
    )
    assert 'image' in load_spec(out / 'slice_end').emits
