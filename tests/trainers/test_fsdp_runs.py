"""Whole runs on FSDP2: the weights of runs on DeepSpeed, resumed by each other, and what it cannot do said early."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.trainers.runs import lines, run, sft, succeed, text_rows, weights, write_rows

Tiny = Callable[..., Path]
FSDP = {'engine': 'fsdp', 'ds_cfgs': None}


def alike(one: Path, other: Path, model: str = 'slice_end') -> None:
    expected, found = weights(one / model), weights(other / model)
    assert expected and found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-5, msg=lambda text, n=name: f'{n}: {text}')
    told = [lines(folder / 'metrics.jsonl') for folder in (one, other)]
    for first, second in zip(*told, strict=True):
        for key in ('train/loss', 'train/tokens', 'train/grad_norm', 'train/learning_rate'):
            assert second.get(key) == pytest.approx(first.get(key), rel=1e-3), key


def test_a_run_ends_where_one_on_deepspeed_does(tiny: Tiny, tmp_path: Path) -> None:
    rows, model = write_rows(tmp_path / 'rows.jsonl', text_rows(7)), tiny('llama')
    succeed(sft(tmp_path / 'one', model, rows, per_device_train_batch_size=4))
    written = succeed(sft(tmp_path / 'two', model, rows, **FSDP), ranks=2)
    assert 'in force: FSDP2 over 2 layers, weights gathered for each pass, fp32, optimizer adamw_torch' in written
    alike(tmp_path / 'one', tmp_path / 'two')
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / 'two' / 'slice_end')
    saved = weights(tmp_path / 'two' / 'slice_end')
    assert all(torch.equal(tensor, reloaded.state_dict()[name]) for name, tensor in saved.items())


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'ds_cfgs': 'ds_z2_config.json'}, 'FSDP2 reads no DeepSpeed file'),
        ({**FSDP, 'fp16': True}, 'FSDP2 scales no loss'),
        ({**FSDP, 'optimizer': 'deepspeed_fused_adam'}, 'does not step on shards'),
        ({**FSDP, 'use_bnb': True, 'load_in_4bit': True}, 'FSDP2 shards no quantised weights'),
        ({'engine': 'deepspeed', 'fsdp_cpu_offload': True}, 'without engine: fsdp'),
    ],
)
def test_what_means_nothing_on_the_other_engine_is_said(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / 'rows.jsonl', text_rows(2))
    [ended] = run(sft(tmp_path / 'run', tmp_path, rows, **{'engine': 'fsdp', **changes}))
    assert ended.code == 2 and words in ' '.join(ended.output.split())
