"""Whole runs in which two ranks share each row: the weights of one rank with the same rows."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from align_anything.cli.leaves import find_run
from align_anything.core.errors import SettingsError
from align_anything.trainers.runs import online
from tests.trainers.runs import lines, run, sft, succeed, text_rows, weights, write_rows
from tests.trainers.test_online import argv, folder  # noqa: F401
from tests.trainers.test_resume import assert_same, dies_in_step, killed

Tiny = Callable[..., Path]


def test_supervised_runs_end_where_one_rank_does(tiny: Tiny, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / 'rows.jsonl', text_rows(7))
    model = tiny('llama')
    succeed(sft(tmp_path / 'one', model, rows, layout='packed'))
    shared = {'layout': 'packed', 'sequence_parallel_size': 2, 'ds_cfgs': 'ds_z3_config.json'}
    written = succeed(sft(tmp_path / 'two', model, rows, **shared), ranks=2)
    assert 'layout: packed' in written
    expected = weights(tmp_path / 'one' / 'slice_end')
    for name, tensor in weights(tmp_path / 'two' / 'slice_end').items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-5)
    told = [lines(tmp_path / name / 'metrics.jsonl') for name in ('one', 'two')]
    for one, two in zip(*told, strict=True):
        for key in ('train/loss', 'train/tokens', 'train/skipped', 'train/grad_norm'):
            assert two.get(key) == pytest.approx(one.get(key), rel=1e-3), key


@pytest.mark.parametrize(
    ('name', 'more'),
    [
        ('grpo', {}),
        pytest.param('ppo', {'ds_cfgs': 'ds_z3_config.json'}, marks=pytest.mark.extended),
    ],
)
def test_online_runs_generate_once_for_ranks_that_share_rows(name, more, folder: Path, tiny: Tiny, tmp_path) -> None:  # noqa: F811
    given = {'num_generations': 3 if name == 'grpo' else None, 'max_steps': 4, 'eval_strategy': 'no', **more}
    given |= {'eval_datasets': None, 'eval_template': None, 'per_device_eval_batch_size': None, 'eval_interval': None}
    command = argv(folder, tmp_path / 'run', tiny('llama'), sequence_parallel_size=2, **given)
    succeed(command, ranks=2, algorithm=find_run('text_to_text', name)[1])
    told = lines(tmp_path / 'run' / 'metrics.jsonl')
    # Two prompts a group of ranks and rollout, not two a rank; one row is too long.
    assert max(line['train/responses'] for line in told) == (6.0 if name == 'grpo' else 2.0)


@pytest.mark.extended
def test_a_killed_run_goes_on_as_if_nothing_had_been(tiny: Tiny, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / 'rows.jsonl', text_rows(7))
    given = {'layout': 'packed', 'sequence_parallel_size': 2, 'save_interval': 2, 'save_total_limit': 9}
    given |= {'per_device_train_batch_size': 1, 'gradient_accumulation_steps': 2}
    succeed(sft(tmp_path / 'whole', tiny('llama'), rows, **given), ranks=2)
    killed(sft(tmp_path / 'cut', tiny('llama'), rows, **given), dies_in_step(3))
    succeed(sft(tmp_path / 'cut', tiny('llama'), rows, **given, resume='auto'), ranks=2)
    assert_same(tmp_path / 'cut', tmp_path / 'whole')


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'sequence_parallel_size': 3}, '2 ranks do not make groups of 3'),
        ({'sequence_parallel_size': 2, 'layout': 'padded'}, 'needs rows without padding'),
        ({'sequence_parallel_size': 2, 'attn_implementation': 'eager'}, 'needs rows without padding'),
    ],
)
def test_what_cannot_be_shared_is_said_before_a_model_loads(changes, words, tiny: Tiny, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / 'rows.jsonl', text_rows(3))
    for ended in run(sft(tmp_path / 'run', tiny('llama'), rows, **changes), ranks=2)[:1]:
        assert ended.code != 0
        assert words in ' '.join(ended.output.split())


@pytest.mark.parametrize(
    ('model', 'vllm', 'words'),
    [({'guidance_scale': 3.0}, False, 'guidance_scale'), ({'guidance_scale': 1.0}, True, 'vllm_async')],
)
def test_what_ranks_that_share_rows_cannot_sample_is_said(model, vllm, words) -> None:
    for size in (1, 2):
        cfgs = SimpleNamespace(
            train_cfgs=SimpleNamespace(sequence_parallel_size=size),
            model_cfgs=SimpleNamespace(**model),
            vllm_cfgs=SimpleNamespace(vllm_async=vllm),
        )
        with nullcontext() if size == 1 else pytest.raises(SettingsError, match=words):
            online._check_shared(cfgs)
