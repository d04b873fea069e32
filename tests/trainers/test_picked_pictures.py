"""Reward models of pictures out of rows of Pick-a-Pic: a model that reads pictures, and CLIP, by whole runs."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from align_anything.cli.leaves import find_run
from align_anything.testing import emitting
from align_anything.testing.tiny.judges import build_judge
from tests.harness.once import once
from tests.trainers.runs import Ended, lines, run, sft, write_rows
from tests.trainers.test_online import argv
from tests.trainers.test_scoring import argv as scoring

COLOURS = {'red': (220, 20, 20), 'green': (20, 200, 20), 'blue': (20, 20, 220), 'grey': (128, 128, 128)}
Tiny = Callable[..., Path]


def picture(name: str, noise: random.Random) -> bytes:
    """A plain picture of about that colour, as the dataset has it."""
    colour = tuple(min(255, max(0, part + noise.randint(-30, 30))) for part in COLOURS[name])
    file = io.BytesIO()
    Image.new('RGB', (noise.randint(20, 60), noise.randint(20, 60)), colour).save(file, 'jpeg')
    return file.getvalue()


def picked(count: int, seed: int = 0, ties: int = 0) -> list[dict[str, Any]]:
    """Rows in which the picture of the colour that was asked for is preferred, and some in which both are of it."""
    noise = random.Random(seed)
    rows = []
    for number in range(count):
        tie = number < ties
        wanted, other = noise.sample(sorted(COLOURS), 2)
        first = noise.random() < 0.5
        rows.append(
            {
                'caption': f'a {wanted} one',
                'jpg_0': picture(wanted if first or tie else other, noise),
                'jpg_1': picture(other if first and not tie else wanted, noise),
                'label_0': 0.5 if tie else float(first),
                'label_1': 0.5 if tie else float(not first),
                'has_label': True,
                'image_0_uid': f'{number}-0',
                'model_0': 'a',
            }
        )
    return rows


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    Dataset.from_list(rows).to_parquet(str(path))
    return path


def trained(out: Path, model: Path, rows: Path, *, ranks: int = 1, **settings: Any) -> Ended:
    changes = {'model_max_length': 256, 'max_steps': 4, 'learning_rate': 1e-3, 'log_interval': 1, **settings}
    pair, algorithm = find_run('text_to_image', 'rm')
    return run(sft(out, model, rows, template='Pickapic', **changes), ranks, pair, algorithm=algorithm)[0]


def losses_of(out: Path, model: Path, rows: Path, **settings: Any) -> list[float]:
    """The loss of each of three steps."""
    ended = trained(out, model, rows, **{'max_steps': 3, **settings})
    assert ended.code == 0, ended.output
    return [record['train/preference_loss'] for record in lines(out / 'metrics.jsonl')]


def scores(out: Path, model: Path, rows: Path) -> list[list[float]]:
    """What `rm_score` writes."""
    pair, algorithm = find_run('text_to_image', 'rm_score')
    (ended,) = run(scoring(out, model, rows, 'Pickapic'), 1, pair, algorithm=algorithm)
    assert ended.code == 0, ended.output
    return [record['scores'] for record in lines(out / 'scores.jsonl')]


@pytest.fixture(scope='module')
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_judge('clip', tmp_path_factory.mktemp('clip') / 'clip')


@pytest.mark.parametrize('keep', [pytest.param(False, marks=pytest.mark.extended), True])
def test_rows_with_bytes_and_ties_train_a_model_that_reads_pictures(keep: bool, tiny: Tiny, tmp_path: Path) -> None:
    rows = write_parquet(tmp_path / 'picked.parquet', picked(8, ties=4))
    settings = {'train_template_kwargs': '{keep_ties: True}'} if keep else {}
    ended = trained(tmp_path / 'out', tiny('llava'), rows, epochs=1, max_steps=None, **settings)
    assert ended.code == 0, ended.output
    records = lines(tmp_path / 'out' / 'metrics.jsonl')
    # A step of ties alone is empty where they are filtered.
    assert sum('train/preference_loss' in record for record in records) in ([4] if keep else [2, 3, 4])
    filtered = tmp_path / 'out' / 'filtered_samples.jsonl'
    assert (len(lines(filtered)) if filtered.exists() else 0) == (0 if keep else 4)


def test_clip_learns_what_fits_a_text_and_is_a_judge_then(clip: Path, shared_cache: Path, tmp_path: Path) -> None:
    rows = write_parquet(tmp_path / 'train.parquet', picked(96, ties=12))
    held_out = write_parquet(tmp_path / 'held_out.parquet', picked(48, seed=1))
    out = tmp_path / 'out'
    settings = {
        'train_template_kwargs': '{keep_ties: True}',
        'eval_datasets': held_out,
        'eval_template': 'Pickapic',
        'eval_strategy': 'steps',
        'eval_interval': 60,
        'per_device_train_batch_size': 8,
        'per_device_eval_batch_size': 16,
        'epochs': 5,
        'max_steps': 60,
        'learning_rate': 3e-3,
        'regularization': 0.0,
    }
    ended = trained(out, clip, rows, **settings)
    assert ended.code == 0, ended.output
    last = lines(out / 'metrics.jsonl')[-1]
    assert last['eval/reward_accuracy'] >= 0.9, last

    # What it scores then is what transformers' class says of the saved folder.
    found = scores(tmp_path / 'scores', out / 'slice_end', held_out)
    model, processor = CLIPModel.from_pretrained(out / 'slice_end').eval(), CLIPProcessor.from_pretrained(clip)
    for row, own in zip(picked(48, seed=1)[:4], found, strict=False):
        ordered = ['jpg_0', 'jpg_1'] if row['label_0'] else ['jpg_1', 'jpg_0']
        shown = [Image.open(io.BytesIO(row[name])).convert('RGB') for name in ordered]
        with torch.no_grad():
            expected = model(**processor(text=[row['caption']], images=shown, return_tensors='pt')).logits_per_image
        assert own == pytest.approx(expected.flatten().tolist(), abs=1e-3)

    drawer = once(shared_cache, 'inspected-drawing', lambda folder: emitting.drawing_model(folder, layers=1, hidden=32))
    prompts = write_rows(
        tmp_path / 'rows.jsonl', [{'prompt': f'draw the digit {word}'} for word in emitting.DIGITS[:2]]
    )
    changes = {
        'train_datasets': prompts,
        'train_template': 'Prompts',
        'reward_functions': '[pick_score]',
        'reward_kwargs': f'{{pick_score: {{model: {out / "slice_end"}, device: cpu}}}}',
        'reward_model_name_or_path': out / 'slice_end',
        'max_new_tokens': 24,
        'num_generations': 3,
        'max_steps': 2,
        'log_completions': 1,
        'eval_strategy': 'no',
        'eval_datasets': None,
        'eval_template': None,
        'eval_interval': None,
        'per_device_eval_batch_size': None,
    }
    pair, algorithm = find_run('text_to_image', 'grpo')
    (ended,) = run(argv(tmp_path, tmp_path / 'online', drawer, **changes), 1, pair, algorithm=algorithm)
    assert ended.code == 0, ended.output
    records = lines(tmp_path / 'online' / 'completions.jsonl')
    assert records and not (tmp_path / 'online' / 'unread_responses.jsonl').exists()
    for record in records:
        assert record['rewards']['model'] == pytest.approx(record['rewards']['pick_score'], abs=1e-3)


@pytest.mark.extended
@pytest.mark.parametrize(
    'settings',
    [
        {'use_lora': True, 'vision_lora': True, 'gradient_checkpointing': True},
        {'freeze_vision_tower': True, 'max_length_per_batch': 256, 'per_device_train_batch_size': 1},
    ],
)
def test_clip_trains_as_other_models_do(settings: dict[str, Any], clip: Path, tmp_path: Path) -> None:
    rows = write_parquet(tmp_path / 'picked.parquet', picked(9))
    assert len({*losses_of(tmp_path / 'out', clip, rows, **settings)}) == 3
    assert (
        len({score for own in scores(tmp_path / 'scores', tmp_path / 'out' / 'slice_end', rows) for score in own}) > 9
    )


@pytest.mark.extended
def test_partitioned_it_learns_the_same(clip: Path, tmp_path: Path) -> None:
    rows = write_parquet(tmp_path / 'picked.parquet', picked(12))
    whole = losses_of(tmp_path / 'whole', clip, rows, per_device_train_batch_size=4)
    stage = {'ds_cfgs': 'ds_z3_config.json', 'ranks': 2, 'per_device_train_batch_size': 2}
    assert losses_of(tmp_path / 'out', clip, rows, **stage) == pytest.approx(whole, rel=1e-4)
    scales = [
        CLIPModel.from_pretrained(folder).logit_scale.item()
        for folder in (clip, tmp_path / 'whole' / 'slice_end', tmp_path / 'out' / 'slice_end')
    ]
    assert scales[0] != scales[1] == pytest.approx(scales[2], rel=1e-5)


def test_clip_writes_nothing(clip: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / 'rows.jsonl', [{'instruction': 'What is it?', 'output': 'A fox.'}])
    pair, algorithm = find_run('text_image_to_text', 'sft')
    (ended,) = run(sft(tmp_path / 'out', clip, rows), 1, pair, algorithm=algorithm)
    assert ended.code == 2 and 'scores answers and writes none: train it with rm' in ended.output, ended.output
