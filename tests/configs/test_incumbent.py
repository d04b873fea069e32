"""The settings files of align-anything load with `--config`: what they set is set, and the rest is told or refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from align_anything.algorithms.base import known_algorithms
from align_anything.configs.resolve import Resolved
from align_anything.core.errors import SettingsError
from align_anything.trainers.launch import settings_of
from align_anything.trainers.pairs import PAIRS
from tests.configs.incumbent_files import AUDIO, FILES, ONLINE, TEXT, file_of
from tests.harness.pairwise import in_tiers

KNOWN = known_algorithms()
NEEDED = '--train_datasets d --train_template t --output_dir o --model_name_or_path m'.split()
# Those that there are, and each of these algorithms on pairs for which there is none.
RUNS = [
    *FILES,
    *((pair, name) for pair in PAIRS for name in ('sft', 'dpo', 'ppo', 'grpo') if (pair, name) not in FILES),
]
RENAMES = {
    **{f'actor_{key}': key for key in ('weight_decay', 'lr_scheduler_type', 'lr_warmup_ratio')},
    'actor_lr': 'learning_rate',
    'actor_gradient_checkpointing': 'gradient_checkpointing',
    'actor_model_name_or_path': 'model_name_or_path',
    'n_samples_per_prompt': 'num_generations',
    'load_checkpoint': 'resume',
    'freeze_audio_proj': 'freeze_mm_proj',
    'freeze_vision_proj': 'freeze_mm_proj',
    'beta_coeff': 'scale_coeff',
    'lora_unet': 'use_lora',
    'freeze_unet': 'use_lora',
    'sample_frames': 'num_frames',
    'max_frames': 'max_audio_seconds',
}


AUDIO_OUT, VIDEO_OUT = 'text_to_audio', 'text_to_video'


def load(text: str, folder: Path, pair: str, name: str, *more: str) -> Resolved:
    (folder / 'theirs.yaml').write_text(text)
    return settings_of(PAIRS[pair], KNOWN[name], ['--config', f'{folder}/theirs.yaml', *NEEDED, *more], {})


@pytest.mark.parametrize(('pair', 'name'), in_tiers(RUNS, FILES))
def test_every_key_of_a_file_is_in_force_or_told_of(pair: str, name: str, tmp_path: Path) -> None:
    text = file_of(pair, name)
    found = load(text, tmp_path, pair, name)
    told = subjects(found)
    assert len(told) == len(found.notes)
    groups = {
        key: group for group in type(found.cfgs).model_fields for key in type(getattr(found.cfgs, group)).model_fields
    }
    for group, keys in yaml.safe_load(text).items():
        for key, value in (keys or {}).items():
            note, renamed = told.pop(f'{group}.{key}', ''), RENAMES.get(key, key)
            if group == 'processor_kwargs':
                assert found.cfgs.model_cfgs.processor_kwargs[key] == value
            elif 'left out' in note:
                assert (
                    renamed not in groups or found.origins[f'{groups[renamed]}.{renamed}'] != f'{tmp_path}/theirs.yaml'
                )
            else:
                assert not note or 'is read as' in note
                assert getattr(getattr(found.cfgs, groups[renamed]), renamed) == _expected(key, value), key
    assert list(told) == ['special_tokens']


def subjects(found: Resolved) -> dict[str, str]:
    """The notes by the key that each is of."""
    return {re.sub('^.*yaml line [0-9]+: ', '', note).split(' ')[0]: note for note in found.notes}


def _expected(key: str, value: object) -> object:
    given = {'train_datasets': 'd', 'train_template': 't', 'output_dir': 'o', 'model_name_or_path': 'm'}
    given['actor_model_name_or_path'] = 'm'
    if key in given:
        return given[key]
    if key == 'load_checkpoint':
        return None
    if key == 'loss_type':
        return [value]
    if key == 'max_frames':
        return value / 100
    if key == 'task_type':
        return 'CAUSAL_LM'
    if key.endswith('optional_args'):
        return {}
    return tuple(value) if key == 'adam_betas' else value


def test_what_cannot_have_an_effect_is_told_of_in_a_line_each(tmp_path: Path) -> None:
    found = load(
        file_of(TEXT, 'sft', regularization=0.001, freeze_mm_proj=False, freeze_audio_proj=False), tmp_path, TEXT, 'sft'
    )
    assert sorted(subjects(found)) == sorted([
        'train_cfgs.regularization', 'train_cfgs.freeze_audio_proj', 'special_tokens', 'data_cfgs.eval_subset',
        'train_cfgs.lr_warmup_ratio', 'lora_cfgs.target_modules',
        'lora_cfgs.save_full_model', 'bnb_cfgs.bnb_4bit_compute_dtype',
    ])  # fmt: skip
    assert found.cfgs.train_cfgs.lr_scheduler_type == 'constant'


def test_a_batch_size_of_another_name_is_read(tmp_path: Path) -> None:
    found = load('train_cfgs:\n  train_batch_size: 3\n', tmp_path, TEXT, 'sft')
    assert found.cfgs.train_cfgs.per_device_train_batch_size == 3
    assert found.notes == (
        f'{tmp_path}/theirs.yaml line 2: '
        'train_cfgs.train_batch_size is read as train_cfgs.per_device_train_batch_size.',
    )
    # On the command line somebody is there to say what is meant.
    with pytest.raises(SettingsError, match="Did you mean 'per_device_train_batch_size'"):
        load('', tmp_path, TEXT, 'sft', '--train_batch_size', '3')


@pytest.mark.parametrize(
    ('pair', 'name', 'text', 'said'),
    [
        (
            AUDIO,
            'sft',
            'train_cfgs: {freeze_mm_proj: False, freeze_audio_proj: True}',
            'freeze_mm_proj is one setting here',
        ),
        (
            AUDIO,
            'sft',
            'train_cfgs: {freeze_vision_proj: False, freeze_audio_proj: True}',
            'but the file gives it twice',
        ),
        (TEXT, 'sft', 'model_cfgs: {processor_name_or_path: other}', 'the processor is that of the checkpoint'),
        (TEXT, 'sft', 'train_cfgs: {lerning_rate: 1}', "Did you mean 'learning_rate'"),
        (AUDIO_OUT, 'sft', 'train_cfgs: {clips_per_audio: 2}', 'a row is one clip'),
        (VIDEO_OUT, 'sft', 'train_cfgs: {do_resize: False}', 'clips are brought to one size'),
        (
            VIDEO_OUT,
            'dpo',
            'train_cfgs: {freeze_unet: False, lora_unet: True}',
            'lora_cfgs.use_lora is one setting here',
        ),
        (TEXT, 'sft', 'train_cfgs: {lora_unet: True}', 'this run has no U-Net'),
        (TEXT, 'multi_ppo', 'train_cfgs: {advantage_estimator: gae}', 'gae needs a critic'),
        (TEXT, 'sft', 'train_cfgs: {scale_coeff: 1}', "'scale_coeff' belongs to"),
    ],
)
def test_what_would_change_the_result_is_refused_with_the_reason(
    pair: str, name: str, text: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=said):
        load(text, tmp_path, pair, name)


def test_keys_of_pipelines_are_read_on_the_command_line_too(tmp_path: Path) -> None:
    words = '--lora_unet True --beta_coeff 5000 --sample_frames 8 --resolution 256'.split()
    cfgs = load('', tmp_path, VIDEO_OUT, 'dpo', *words).cfgs
    assert cfgs.lora_cfgs.use_lora and cfgs.train_cfgs.scale_coeff == 5000
    assert cfgs.data_cfgs.num_frames == 8 and cfgs.diffusion_cfgs.resolution == 256
    with pytest.raises(SettingsError, match="Did you mean 'use_lora'"):
        load('', tmp_path, VIDEO_OUT, 'dpo', '--freeze_unet', 'True')


@pytest.mark.parametrize('name', [name for pair, name in FILES if pair == TEXT])
def test_null_is_left_out_where_it_is_no_value(name: str, tmp_path: Path) -> None:
    text = 'train_cfgs: {seed: null, processor: null}\nlogger_cfgs: {log_project: null}\nsensor_cfgs: null\n'
    found = load(text, tmp_path, TEXT, name)
    assert found.cfgs.train_cfgs.seed == 42 and found.cfgs.logger_cfgs.log_project == 'align-anything'
    assert len(found.notes) == 4 and all('null' in note for note in found.notes)


def test_the_files_are_those_of_the_table() -> None:
    assert {name for _, name in FILES} >= {*ONLINE, 'sft', 'kto'} and len(FILES) == 33
