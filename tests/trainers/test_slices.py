"""Which checkpoints a run keeps, which it takes up again, and what it says when it cannot."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from align_anything.algorithms.base import find_algorithm
from align_anything.configs.schema import build_run_schema
from align_anything.trainers.loops.progress import identity
from tests.trainers.runs import die, lines, run, sft, succeed, text_rows, weights, write_rows

STEPS = 6  # 12 rows, 2 in a step
SAVES = {'save_interval': 2, 'save_total_limit': 2}

Settings = Callable[..., list[str]]


@pytest.fixture(scope='module')
def settings(tiny, tmp_path_factory) -> Settings:
    model, rows = tiny('llama'), write_rows(tmp_path_factory.mktemp('inputs') / 'rows.jsonl', text_rows(2 * STEPS))

    def make(output: Path, *more: object, **changes: object) -> list[str]:
        return sft(output, model, rows, *more, **changes)

    return make


@pytest.fixture(scope='module')
def finished(settings, tmp_path_factory) -> Path:
    """A run that left slice_2, slice_4 and slice_end. Do not write into it."""
    folder = tmp_path_factory.mktemp('finished') / 'run'
    succeed(settings(folder, **SAVES))
    return folder


@pytest.fixture
def old(finished, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(finished, tmp_path / 'old'))


def checkpoints_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob('slice_*'))


def refused(argv: list[str], *texts: str) -> str:
    [ended] = run(argv)
    assert ended.code == 2, ended.output
    assert 'Traceback' not in ended.output
    for text in texts:
        assert text in ended.output, ended.output
    return ended.output


@pytest.mark.parametrize(
    ('interval', 'limit', 'kept'),
    [
        (2, 0, []),
        (1, 1, ['slice_5']),
        (1, 3, ['slice_3', 'slice_4', 'slice_5']),
        (2, 3, ['slice_2', 'slice_4']),
        (None, 2, ['slice_2', 'slice_4']),  # spread evenly: 6 steps in thirds
        (None, 1, ['slice_3']),
        (100, 1, []),
    ],
)
def test_exactly_so_many_checkpoints_are_kept_and_the_newest(settings, tmp_path, interval, limit, kept):
    succeed(settings(tmp_path, save_interval='null' if interval is None else interval, save_total_limit=limit))
    assert checkpoints_in(tmp_path) == [*kept, 'slice_end']
    assert all((tmp_path / name / 'state').is_dir() for name in kept)
    assert not (tmp_path / 'slice_end' / 'state').exists()


def test_ten_steps_come_after_nine_when_the_oldest_goes(settings, tmp_path):
    """By number and not by name, where slice_10 stands before slice_9."""
    succeed(settings(tmp_path, per_device_train_batch_size=1, save_interval=1, save_total_limit=3))
    assert checkpoints_in(tmp_path) == ['slice_10', 'slice_11', 'slice_9', 'slice_end']


def test_auto_in_an_empty_folder_starts_afresh(settings, finished, tmp_path):
    assert 'resumed' not in succeed(settings(tmp_path, '--resume', 'auto'))
    assert (tmp_path / 'metrics.jsonl').read_text() == (finished / 'metrics.jsonl').read_text()


def test_auto_after_the_end_trains_the_rest_again_and_ends_the_same(settings, old, finished):
    assert 'after step 4 of 6' in succeed(settings(old, '--resume', 'auto', **SAVES))
    expected, found = weights(finished / 'slice_end'), weights(old / 'slice_end')
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert (old / 'metrics.jsonl').read_text() == (finished / 'metrics.jsonl').read_text()


def test_load_checkpoint_of_the_incumbent_means_auto(settings, old):
    assert 'after step 4 of 6' in succeed(settings(old, '--load_checkpoint', 'True', **SAVES))


def test_a_slice_without_its_manifest_is_not_taken(settings, old):
    (old / 'slice_4' / 'manifest.json').unlink()
    assert f'resumed from {old}/slice_2 after step 2 of 6' in succeed(settings(old, '--resume', 'auto', **SAVES))


def test_a_longer_run_goes_on_where_a_shorter_one_ended(settings, old):
    output = succeed(settings(old, '--resume', 'auto', epochs=2, save_interval=2, save_total_limit=2))
    assert 'after step 4 of 12' in output
    assert [record['step'] for record in lines(old / 'metrics.jsonl')] == list(range(1, 13))


def test_changed_settings_are_all_listed(settings, old):
    rows = write_rows(old / 'other.jsonl', text_rows(4))
    changed = {'seed': 7, 'per_device_train_batch_size': 4, 'gradient_accumulation_steps': 2, 'train_datasets': rows}
    output = refused(settings(old, '--resume', 'auto', **SAVES, **changed), 'or start afresh in another output_dir')
    before = {'seed': '42', 'per_device_train_batch_size': '2', 'gradient_accumulation_steps': '1'}
    for key, value in before.items():
        assert f'train_cfgs.{key} is {changed[key]}, but {old}/slice_4 was written with {value}.' in output
    assert f"data_cfgs.train_datasets is '{rows}'" in output


def test_a_checkpoint_of_an_earlier_version_goes_on_and_says_what_it_does_not_know(settings, old):
    file = old / 'slice_4' / 'manifest.json'
    manifest = json.loads(file.read_text())
    del manifest['identity']['train_cfgs.adam_betas']
    file.write_text(json.dumps(manifest))
    output = ' '.join(succeed(settings(old, '--resume', 'auto', **SAVES)).split())
    assert 'does not say what these settings were; give the same as then: train_cfgs.adam_betas' in output
    assert 'after step 4 of 6' in output


@pytest.mark.parametrize(
    ('group', 'key', 'value', 'same'),
    [
        ('lora_cfgs', 'lora_alpha', 400, False),
        ('lora_cfgs', 'use_dora', True, False),
        ('train_cfgs', 'router_aux_loss_coef', 0.5, False),
        ('train_cfgs', 'learning_rate', 0.5, False),
        ('train_cfgs', 'lr_groups', {'lm_head': 0.5}, False),
        ('train_cfgs', 'weight_decay', 0.5, False),
        ('train_cfgs', 'adam_betas', [0.5, 0.5], False),
        ('train_cfgs', 'adam_epsilon', 0.5, False),
        ('train_cfgs', 'max_grad_norm', 0.5, True),
        ('bnb_cfgs', 'load_in_8bit', True, False),
        ('data_cfgs', 'num_frames', 3, False),
        ('model_cfgs', 'chat_template', 'other.jinja', False),
        ('model_cfgs', 'temperature', 0.5, False),
        ('vllm_cfgs', 'vllm_server_urls', ['http://node2:8000'], True),
        ('vllm_cfgs', 'vllm_gpu_memory_utilization', 0.9, True),
        ('logger_cfgs', 'log_interval', 7, True),
    ],
)
def test_what_is_computed_must_agree_and_where_it_is_computed_may_not(group, key, value, same):
    schema = build_run_schema(find_algorithm('grpo'))
    assert (identity(schema(**{group: {key: value}})) == identity(schema())) is same


def test_another_number_of_processes_is_refused_on_both(settings, old):
    ended = run(settings(old, '--resume', 'auto', **SAVES), ranks=2)
    assert [item.code for item in ended] == [2, 2]
    assert f'world_size is 2, but {old}/slice_4 was written with 1' in ended[0].output


def test_a_path_that_is_no_slice(settings, old, tmp_path):
    refused(settings(old, '--resume', tmp_path / 'nowhere'), 'train_cfgs.resume', 'no such folder', 'or auto')
    refused(settings(old, '--resume', old), 'not a complete slice_<step> folder', f'{old}/slice_2, {old}/slice_4')
    (old / 'slice_4' / 'manifest.json').unlink()
    refused(settings(old, '--resume', old / 'slice_4'), 'not a complete', f'Complete there: {old}/slice_2.')
    refused(settings(old, '--resume', old / 'slice_end'), 'not a complete slice_<step> folder')


def test_a_slice_that_was_saved_without_state(settings, tmp_path):
    succeed(settings(tmp_path, save_checkpoint=False, **SAVES))
    assert checkpoints_in(tmp_path) == ['slice_2', 'slice_4', 'slice_end']
    refused(settings(tmp_path, '--resume', 'auto', **SAVES), 'slice_4 holds no training state', 'save_checkpoint off')


def test_a_broken_manifest_is_named(settings, old):
    (old / 'slice_4' / 'manifest.json').write_text('{"progress": {')
    refused(settings(old, '--resume', 'auto', **SAVES), f'{old}/slice_4/manifest.json', 'slice_2')


def test_files_that_were_lost_or_cut_off_are_named(settings, old):
    (old / 'slice_4' / 'state' / 'random_rank0.pt').unlink()
    [optimizer] = (old / 'slice_4' / 'state').rglob('*model_states.pt')
    optimizer.write_bytes(optimizer.read_bytes()[:1000])
    names = f'state/{optimizer.relative_to(old / "slice_4" / "state")}, state/random_rank0.pt'
    refused(
        settings(old, '--resume', 'auto', **SAVES), f'missing or truncated: {names}.', 'another checkpoint (slice_2)'
    )


def test_a_run_shorter_than_the_slice_is_refused(settings, old):
    refused(settings(old, '--resume', 'auto', max_steps=3), 'slice_4 is past the 3 steps', 'Raise epochs or max_steps')


def test_a_fresh_run_in_an_old_folder_is_not_mixed_up_with_the_old_one(settings, old):
    """Were the old checkpoints left there, pruning would delete the new ones first, and auto would take an old one."""
    kept = weights(old / 'slice_4')
    again = {'seed': 7, 'save_interval': 1, 'save_total_limit': 1, 'max_steps': 3}
    refused(settings(old, **again), f'{old} holds slice_2, slice_4, slice_end, metrics.jsonl', '--overwrite_output_dir')
    assert all(torch.equal(value, kept[name]) for name, value in weights(old / 'slice_4').items())
    shutil.copytree(old / 'slice_end', old / 'slice_best')
    output = succeed(settings(old, '--overwrite_output_dir', **again))
    assert checkpoints_in(old) == ['slice_2', 'slice_2.old', 'slice_4.old', 'slice_best.old', 'slice_end']
    assert 'slice_4.old' in output
    set_aside = weights(old / 'slice_4.old')
    assert all(torch.equal(set_aside[name], kept[name]) for name in kept)
    manifest = json.loads((old / 'slice_2' / 'manifest.json').read_text())
    assert manifest['identity']['train_cfgs.seed'] == 7


def test_a_trained_model_without_checkpoints_is_not_replaced_by_resuming(settings, old):
    for name in ('slice_2', 'slice_4'):
        shutil.rmtree(old / name)
    refused(settings(old, '--resume', 'auto'), 'holds the trained model of a run', 'no checkpoint to go on from')
    assert (old / 'slice_end').is_dir()


def test_going_back_to_an_earlier_slice_sets_the_later_ones_aside(settings, old):
    succeed(settings(old, '--resume', old / 'slice_2', save_interval=1, save_total_limit=9, max_steps=4))
    assert checkpoints_in(old) == ['slice_2', 'slice_3', 'slice_4.old', 'slice_end']


@pytest.mark.parametrize('last', ['.slice_end.retired', 'slice_end'])
def test_writing_a_name_that_is_taken_survives_a_kill_after_either_rename(settings, old, last):
    """The final model is written again when the run ends once more: the old one makes room, the new one moves in."""

    def before(rank: int) -> None:
        inner = os.replace

        def replace(source, target, **options):
            inner(source, target, **options)
            if Path(target).name == last:
                die()

        os.replace = replace

    assert run(settings(old, '--resume', 'auto', **SAVES), before=before)[0].code is None
    assert 'after step 4 of 6' in succeed(settings(old, '--resume', 'auto', **SAVES))
    assert checkpoints_in(old) == ['slice_2', 'slice_4', 'slice_end']
    assert [path.name for path in old.glob('.slice*')] == []
