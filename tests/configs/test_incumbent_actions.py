"""The settings file of align-anything for models that act: each of its keys is in force, or told of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from align_anything.algorithms.base import known_algorithms
from align_anything.configs.resolve import Resolved
from align_anything.core.errors import DataError, SettingsError
from align_anything.datasets.source_loading import load_sources
from align_anything.trainers.launch import settings_of
from align_anything.trainers.pairs import PAIRS
from align_anything.trainers.runs.data import in_folder
from tests.configs.incumbent_actions import CAMERAS, VALUES, incumbent_file
from tests.configs.test_incumbent import subjects

PAIR = PAIRS['text_video_to_action']


def load(tmp_path: Path, *more: str, algorithm: str = 'sft', **data: Any) -> Resolved:
    (tmp_path / 'theirs.yaml').write_text(incumbent_file(**data))
    needed = ['--output_dir', 'o', '--model_name_or_path', 'm']
    argv = ['--config', f'{tmp_path}/theirs.yaml', *needed, *more]
    return settings_of(PAIR, known_algorithms()[algorithm], argv, {})


def test_it_is_obeyed(tmp_path: Path) -> None:
    found = load(tmp_path)
    data, train = found.cfgs.data_cfgs, found.cfgs.train_cfgs
    assert (data.train_datasets, data.data_dir, data.train_template) == (['PickupType'], 'path/to/data', 'Chores')
    assert data.train_template_kwargs == {'input_sensors': CAMERAS}
    assert (data.train_size, data.sliding_window, data.windows) == (10_000_000, 100, 'random')
    assert (train.epochs, train.seed, train.per_device_train_batch_size) == (200, 3407, 8)
    assert data.eval_datasets is None
    told = subjects(found)
    assert found.cfgs.action_cfgs.model_version == 'small_3'
    for key in ('train_cfgs.loss', 'model_cfgs.model_architecture'):
        assert 'is left out' in told[key]
    assert 'is an option of the template' in told['sensor_cfgs.input_sensors']
    # What they have for evaluation means nothing while nothing is evaluated.
    assert 'is left out' in told['data_cfgs.eval_size'] and 'is left out' in told['train_cfgs.eval_interval']
    known = {f'{group}.{key}' for group, keys in VALUES.items() for key in keys or {}}
    assert all(key in known or key.split('.')[1].startswith(('eval', 'per_device_eval')) for key in told if '.' in key)


def test_val_datasets_are_the_split_val_of_the_training_data(tmp_path: Path) -> None:
    found = load(tmp_path, val_datasets=True).cfgs
    data = found.data_cfgs
    assert (data.eval_datasets, data.eval_split, data.eval_size) == (['PickupType'], 'val', 640)
    assert (data.eval_template, data.eval_template_kwargs) == ('Chores', {'input_sensors': CAMERAS})
    assert found.train_cfgs.eval_strategy == 'steps' and found.train_cfgs.eval_interval == 500
    assert found.train_cfgs.per_device_eval_batch_size == 12
    with pytest.raises(SettingsError, match='val_datasets evaluates in place of eval_datasets'):
        load(tmp_path, '--eval_datasets', 'd', val_datasets=True)


def test_its_keys_can_be_given_one_by_one(tmp_path: Path) -> None:
    more = ['--dataset_task_type', 'FetchType', 'RoomVisit', '--data_dir', '/data', '--sliding_window', '50']
    more += ['--init_prob_sample_last_steps', '0.5', '--reduce_action_redundancy', 'True', '--max_samples', '9']
    data = load(tmp_path, *more).cfgs.data_cfgs
    assert in_folder(data.data_dir, data.train_datasets) == ['/data/FetchType', '/data/RoomVisit']
    assert (data.sliding_window, data.init_prob_sample_last_steps, data.train_size) == (50, 0.5, 9)
    assert data.reduce_action_redundancy and in_folder(None, 'a') == 'a' and in_folder('/data', '/b') == '/b'


FLAGS: dict[str, tuple[Any, str, Any]] = {
    'data_dir': ('/d', 'data_dir', '/d'),
    'dataset_version': ('Steps', 'train_template', 'Steps'),
    'dataset_task_type': (['ObjectNavType', 'RoomVisit'], 'train_datasets', ['ObjectNavType', 'RoomVisit']),
    'sliding_window': (7, 'sliding_window', 7),
    'init_prob_sample_last_steps': (0.3, 'init_prob_sample_last_steps', 0.3),
    'final_prob_sample_last_steps': (0.9, 'final_prob_sample_last_steps', 0.9),
    'reduce_action_redundancy': (True, 'reduce_action_redundancy', True),
    'max_samples': (12, 'train_size', 12),
    'val_datasets': (True, 'eval_split', 'val'),
    'num_workers': (3, 'num_workers', 3),
}


def test_each_of_its_flags_of_data_is_in_force(tmp_path: Path) -> None:
    assert FLAGS.keys() | {'val_max_samples'} == (VALUES['data_cfgs'] or {}).keys()
    for key, (value, name, wanted) in FLAGS.items():
        found = load(tmp_path, **{key: value}).cfgs.data_cfgs
        assert getattr(found, name) == wanted != getattr(load(tmp_path).cfgs.data_cfgs, name), key
    assert load(tmp_path, val_datasets=True, val_max_samples=9).cfgs.data_cfgs.eval_size == 9
    with pytest.raises(DataError, match=r"'CHORE'.* Did you mean 'Chores'"):
        load_sources('d', load(tmp_path, dataset_version='CHORE').cfgs.data_cfgs.train_template)


@pytest.mark.parametrize(
    ('pair', 'algorithm', 'settings', 'told'),
    [
        ('text_to_text', 'sft', ['--sliding_window', '3'], 'but in supervised fine-tuning on recorded actions'),
        ('text_video_to_action', 'dpo', ['--sliding_window', '3'], 'but in supervised fine-tuning'),
        (
            'text_video_to_action',
            'sft',
            ['--reduce_action_redundancy', 'True'],
            'nothing without data_cfgs.sliding_window',
        ),
        ('text_video_to_action', 'sft', ['--final_prob_sample_last_steps', '0.5'], 'without data_cfgs.sliding_window'),
        ('text_video_to_action', 'sft', ['--sliding_window', '0'], 'greater than 0'),
    ],
)
def test_settings_of_windows_without_an_effect_are_problems(
    pair: str, algorithm: str, settings: list[str], told: str
) -> None:
    needed = '--train_datasets d --train_template t --output_dir o --model_name_or_path m'.split()
    with pytest.raises(SettingsError, match=told):
        settings_of(PAIRS[pair], known_algorithms()[algorithm], [*needed, *settings], {})
