"""Steps that have nothing to train on are counted, and nothing is made up for them; what is absent has no number."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align_anything.cli.leaves import find_run
from align_anything.datasets.dataset import ExampleDataset
from align_anything.reporting.panels import read_curves
from align_anything.reporting.plot import plot_metrics
from align_anything.trainers.loops.offline import OfflineLoop
from tests.trainers.runs import Ended, die, lines, run, sft, text_rows, write_rows
from tests.trainers.test_resume import assert_same

Tiny = Callable[..., Path]
TOO_LONG = {'instruction': 'sun ' * 200, 'output': 'sea'}
OF_TRAINED_STEPS = {'train/loss', 'train/grad_norm', 'train/padding'}


def trained(name: str, argv: list[str], **more: Any) -> Ended:
    pair, algorithm = find_run('text_to_text', name)
    (ended,) = run(argv, pair=pair, algorithm=algorithm, **more)
    return ended


def every_other_step(output: Path, model: Path, folder: Path, *more: str) -> list[str]:
    """Each epoch has a step on a row and one on a row that cannot be used."""
    rows = write_rows(folder / 'rows.jsonl', [text_rows(1)[0], TOO_LONG])
    settings = {
        'per_device_train_batch_size': 1,
        'epochs': 3,
        'max_skipped_ratio': 1.0,
        'ds_cfgs': 'ds_z2_config.json',
        'log_type': 'tensorboard',
        'save_interval': 1,
        'save_total_limit': 6,
    }
    return sft(output, model, rows, *more, **settings)


def test_a_step_without_a_usable_row_has_no_loss_and_no_gradient(tiny: Tiny, tmp_path: Path) -> None:
    ended = trained('sft', every_other_step(tmp_path / 'whole', tiny('llama'), tmp_path))
    assert ended.code == 0, ended.output
    assert '3 of 6 optimizer steps had nothing to train on (metric empty_steps)' in ended.output
    records = lines(tmp_path / 'whole/metrics.jsonl')
    empty = [record for record in records if not record['train/samples']]
    assert [record['step'] for record in records] == [1, 2, 3, 4, 5, 6] and len(empty) == 3
    for record in empty:
        assert not OF_TRAINED_STEPS & record.keys() and record['train/tokens'] == 0
        assert record['train/learning_rate'] >= 0
    for record in records:
        expected = sum(other['step'] <= record['step'] for other in empty)
        assert record.get('train/empty_steps', 0) == expected
        assert record in empty or OF_TRAINED_STEPS <= record.keys()
        assert not any(value == 'nan' for value in record.values())
    assert 'loss 0.0000' not in ended.output

    # Curves, the tracker and an exact resume bear what is missing.
    assert len(read_curves(tmp_path / 'whole')['loss']['train']) == 3 and plot_metrics(tmp_path / 'whole')

    def kill(rank: int) -> None:
        inner = OfflineLoop._step

        def step(self, loaded):
            if self.progress.step == empty[0]['step']:
                die()
            return inner(self, loaded)

        OfflineLoop._step = step

    argv = every_other_step(tmp_path / 'killed', tiny('llama'), tmp_path)
    assert trained('sft', argv, before=kill).code is None
    assert trained('sft', [*argv, '--resume', 'auto']).code == 0
    assert_same(tmp_path / 'killed', tmp_path / 'whole')


def test_an_evaluation_without_a_usable_row_is_refused_at_the_start_and_measures_nothing_later(
    tiny: Tiny, tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / 'rows.jsonl', text_rows(4))
    held_out = write_rows(tmp_path / 'held_out.jsonl', [TOO_LONG, {**TOO_LONG, 'output': 'tree'}])
    settings = {'eval_datasets': held_out, 'eval_template': 'Instruction', 'max_skipped_ratio': 1.0}
    settings |= {'eval_strategy': 'epoch', 'epochs': 3, 'save_best': 'loss', 'early_stopping_patience': 1}
    argv = sft(tmp_path / 'out', tiny('llama'), rows, **settings)
    assert 'none of the first 2 rows' in trained('sft', argv).output, 'before weights are loaded'

    def become_unusable_later(rank: int) -> None:
        ExampleDataset.probe = lambda self, final=False: None

    ended = trained('sft', argv, before=become_unusable_later)
    assert ended.code == 0, ended.output
    assert 'evaluation after step 2: no row could be used' in ended.output
    records = lines(tmp_path / 'out/metrics.jsonl')
    assert len(records) == 6 and not [record for record in records if 'eval/loss' in record]
    assert not (tmp_path / 'out/slice_best').exists(), 'none was better than another'


@pytest.mark.parametrize('label', [True, pytest.param(False, marks=pytest.mark.extended)])
def test_a_class_that_no_row_of_a_step_has_gets_no_reward(label: bool, tiny: Tiny, tmp_path: Path) -> None:
    rows = write_rows(
        tmp_path / 'rows.jsonl',
        [{'prompt': row['instruction'], 'response': row['output'], 'label': label} for row in text_rows(4)],
    )
    ended = trained('kto', sft(tmp_path / 'out', tiny('llama'), rows, template='Unpaired'))
    assert ended.code == 0, ended.output
    present, absent = ('desirable', 'undesirable') if label else ('undesirable', 'desirable')
    for record in lines(tmp_path / 'out/metrics.jsonl'):
        assert math.isfinite(record[f'train/{present}_reward']) and f'train/{absent}_reward' not in record
    assert f'{absent}_reward 0.0000' not in ended.output.replace(f'un{absent}', '')


@pytest.mark.parametrize('name', ['online_dpo', pytest.param('ppo', marks=pytest.mark.extended)])
def test_a_rollout_that_teaches_nothing_has_no_loss(name: str, tiny: Tiny, tmp_path: Path) -> None:
    """Responses that are all worth the same leave online DPO no pair; a critic cannot explain equal returns."""
    (tmp_path / 'rewards.py').write_text('def equal(completions):\n    return [1.0 for _ in completions]\n')
    rows = write_rows(tmp_path / 'rows.jsonl', text_rows(4))
    settings = {
        'num_generations': 2,
        'per_device_prompt_batch_size': 2,
        'per_device_train_batch_size': 4,
        'max_new_tokens': 3,
        'reward_functions': f'[{tmp_path}/rewards.py:equal]',
        'max_steps': 2,
        'ds_cfgs': 'ds_z2_config.json',
        # Returns are then the rewards themselves.
        **({'kl_coeff': 0.0, 'gae_lambda': 1.0} if name == 'ppo' else {}),
    }
    ended = trained(name, sft(tmp_path / 'out', tiny('qwen2'), rows, **settings))
    assert ended.code == 0, ended.output
    records = lines(tmp_path / 'out/metrics.jsonl')
    assert [record['train/reward'] for record in records] == [1.0, 1.0]
    assert not [value for record in records for value in record.values() if value == 'nan']
    if name == 'ppo':
        assert not [key for record in records for key in record if key.endswith('explained_variance')]
        return
    assert [record['train/empty_steps'] for record in records] == [1.0, 2.0]
    untold = {'train/loss', 'train/grad_norm', 'train/rollout_drift', 'train/preference_loss'}
    assert not untold & {key for record in records for key in record}
    assert '2 of 2 optimizer steps had nothing to train on' in ended.output


@pytest.mark.extended
def test_a_mixture_of_experts_bears_an_empty_step_beside_others_in_a_rollout(tiny: Tiny, tmp_path: Path) -> None:
    """Of two prompts one has a pair to learn from, so one of the two steps of each rollout is empty."""
    (tmp_path / 'rewards.py').write_text(
        'def some(completions):\n'
        '    return [float(n if item.source.endswith(":1") else 0) for n, item in enumerate(completions)]\n'
    )
    rows = write_rows(tmp_path / 'rows.jsonl', text_rows(2))
    settings = {
        'num_generations': 2,
        'per_device_prompt_batch_size': 2,
        'per_device_train_batch_size': 2,
        'gradient_accumulation_steps': 1,
        'max_new_tokens': 3,
        'reward_functions': f'[{tmp_path}/rewards.py:some]',
        'max_steps': 4,
        'log_interval': 2,
        'ds_cfgs': 'ds_z2_config.json',
        'router_aux_loss_coef': 0.5,
    }
    ended = trained('online_dpo', sft(tmp_path / 'out', tiny('qwen3_moe'), rows, **settings))
    assert ended.code == 0, ended.output
    records = lines(tmp_path / 'out/metrics.jsonl')
    assert [record['train/empty_steps'] for record in records] == [1.0, 2.0]
    for record in records:
        expected = record['train/preference_loss'] + 0.5 * record['train/router_loss']
        assert record['train/loss'] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('name', ['sft', 'grpo'])
def test_answers_that_do_not_fit_are_counted_also_beside_rollouts(name: str, tiny: Tiny, tmp_path: Path) -> None:
    """`truncated` of an online run is a share of its responses, so what is cut in its given rows has another name."""
    given = text_rows(2)
    given[1]['output'] = 'sea ' * 200
    file = write_rows(tmp_path / 'given.jsonl', given)
    (tmp_path / 'rewards.py').write_text('def equal(completions):\n    return [1.0 for _ in completions]\n')
    online = {
        'num_generations': 2,
        'max_new_tokens': 3,
        'reward_functions': f'[{tmp_path}/rewards.py:equal]',
        'ptx_datasets': file,
        'ptx_template': 'Instruction',
    }
    settings = {'per_device_train_batch_size': 2, 'max_steps': 2, 'ds_cfgs': 'ds_z2_config.json'}
    settings |= online if name == 'grpo' else {}
    rows = write_rows(tmp_path / 'rows.jsonl', text_rows(2)) if name == 'grpo' else file
    ended = trained(name, sft(tmp_path / 'out', tiny('llama'), rows, **settings))
    assert ended.code == 0, ended.output
    records = lines(tmp_path / 'out/metrics.jsonl')
    assert [record['train/truncated_answers'] for record in records] == [1.0, 1.0]
    assert all(('train/truncated' in record) == (name == 'grpo') for record in records)
