"""A run on an adapter folder trains that adapter, merging comes out the same, and other runs say what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from align_anything.cli.merging import merge_adapter
from align_anything.models.checkpoint import stored_keys
from tests.harness.pairwise import first_of
from tests.trainers.runs import run, sft, succeed, text_rows, weights, write_rows

LORA = {'use_lora': True, 'r': 4, 'lora_alpha': 8, 'lora_dropout': 0.0}


@pytest.mark.parametrize('ds_cfgs', first_of(['ds_z0_config.json', 'ds_z3_config.json'], 'ds_z3_config.json'))
def test_a_run_goes_on_from_an_adapter(ds_cfgs: str, tiny: Callable[..., Path], tmp_path: Path) -> None:
    rows = write_rows(tmp_path / 'rows.jsonl', text_rows(4))
    succeed(sft(tmp_path / 'first', tiny('qwen2'), rows, ds_cfgs=ds_cfgs, **LORA))
    adapter = tmp_path / 'first' / 'slice_end'
    # So small a step that no weight may move by more than a millionth: what is saved is what was loaded.
    still = sft(tmp_path / 'second', adapter, rows, ds_cfgs=ds_cfgs, max_steps=1, **{**LORA, 'learning_rate': 1e-7})
    succeed(still)
    before, after = weights(adapter), weights(tmp_path / 'second' / 'slice_end')
    assert before.keys() == after.keys()
    assert any('lora_B' in name and tensor.abs().max() > 1e-3 for name, tensor in before.items())
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, atol=1e-6, rtol=0)
    merge_adapter(tmp_path / 'second' / 'slice_end', tmp_path / 'merged')
    assert stored_keys(tmp_path / 'merged') == stored_keys(tiny('qwen2'))


def test_runs_that_cannot_go_on_say_so_before_they_load(tiny: Callable[..., Path], tmp_path: Path) -> None:
    rows = write_rows(tmp_path / 'rows.jsonl', text_rows(4))
    succeed(sft(tmp_path / 'first', tiny('qwen2'), rows, **LORA))
    adapter = tmp_path / 'first' / 'slice_end'
    for settings, words in (({}, f'align-anything merge {adapter}'), ({**LORA, 'r': 8}, 'set --r 4')):
        for more in ([], ['--dry_run']):
            ended = run(sft(tmp_path / 'second', adapter, rows, *more, **settings))[0]
            assert ended.code == 2 and words in ended.output and 'Traceback' not in ended.output
            assert 'in force' not in ended.output
    ended = run(sft(tmp_path / 'second', adapter, rows, '--dry_run', **LORA))[0]
    assert ended.code == 0, ended.output
