"""Whole runs with `torch_compile`: what they end with, what is told of it, resuming, and what is refused early."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from align_anything.algorithms.sft import SFT
from align_anything.cli.leaves import find_run
from align_anything.core.errors import SettingsError
from align_anything.models import compiling
from align_anything.trainers.launch import settings_of
from align_anything.trainers.pairs import PAIRS
from align_anything.trainers.runs.assembly import check_model
from align_anything.trainers.runs.settings import spec_of
from tests.trainers import denoising
from tests.trainers.runs import lines, sft, succeed, text_rows, weights, write_rows
from tests.trainers.test_fsdp_runs import LORA, ONLINE, REWARD
from tests.trainers.test_resume import dies_in_step, killed

Tiny = Callable[..., Path]
COMPILED = {'torch_compile': True, 'ds_cfgs': 'ds_z2_config.json'}


def by(backend: str, also: Callable[[int], None] | None = None) -> Callable[[int], None]:
    def before(rank: int) -> None:
        compiling.BACKEND = backend
        if also is not None:
            also(rank)

    return before


@pytest.mark.parametrize(
    ('given', 'told'),
    [
        ({}, 'torch_compile .*compiles whole layers, of which ZeRO-3 gathers one module after another; take ds_cfgs'),
        ({'engine': 'fsdp', 'mlp_tiles': 2}, 'torch_compile .*mlp_tiles computes their MLPs again piece by piece'),
    ],
)
def test_what_is_known_to_fail_is_refused_before_a_model_loads(given: dict[str, Any], told: str) -> None:
    needed = {'model_name_or_path': 'm', 'train_datasets': 'd', 'train_template': 'Messages', 'output_dir': 'o'}
    values = {**needed, 'torch_compile': True, **given}
    argv = [word for key, value in values.items() for word in (f'--{key}', str(value))]
    with pytest.raises(SettingsError, match=told):
        settings_of(PAIRS['text_to_text'], SFT, argv, {})


@pytest.mark.parametrize('variable', ['TORCHDYNAMO_DISABLE', 'TORCH_COMPILE_DISABLE'])
def test_an_environment_in_which_torch_compiles_nothing_is_refused(variable: str, monkeypatch) -> None:
    needed = {'model_name_or_path': 'm', 'train_datasets': 'd', 'train_template': 'Messages', 'output_dir': 'o'}
    argv = [word for key, value in {**needed, **COMPILED}.items() for word in (f'--{key}', str(value))]
    settings_of(PAIRS['text_to_text'], SFT, argv, {})
    monkeypatch.setenv(variable, '1')
    with pytest.raises(SettingsError, match=f'torch_compile .*{variable} has torch compile nothing; unset it'):
        settings_of(PAIRS['text_to_text'], SFT, argv, {})


def test_denoisers_of_several_sizes_are_refused_before_a_model_loads(tiny: Tiny, tmp_path: Path) -> None:
    argv = denoising.offline(tmp_path / 'run', tiny('sd3'), tmp_path, torch_compile=True, max_length_per_batch=64)
    resolved = settings_of(denoising.PICTURES, SFT, argv, {})
    with pytest.raises(SettingsError, match=r'torch_compile: samples of several sizes .*max_length_per_batch'):
        check_model(resolved, spec_of(resolved.cfgs))


def alike(one: Path, other: Path) -> None:
    expected, found = weights(one / 'slice_end'), weights(other / 'slice_end')
    assert expected and found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert float((found[name] - tensor).abs().max()) < 1e-4, name
    for first, second in zip(*(lines(folder / 'metrics.jsonl') for folder in (one, other)), strict=True):
        for key in ('train/loss', 'train/grad_norm'):
            if key in first:
                assert second[key] == pytest.approx(first[key], rel=1e-4), key


@pytest.mark.extended
def test_a_run_ends_where_one_without_does_and_goes_on_when_killed(tiny: Tiny, tmp_path: Path) -> None:
    rows, model = write_rows(tmp_path / 'rows.jsonl', text_rows(24)), tiny('qwen2')
    shape = {'per_device_train_batch_size': 1, 'gradient_accumulation_steps': 2, 'adam_epsilon': 1e-3}
    succeed(sft(tmp_path / 'plain', model, rows, **shape), 2)
    written = succeed(sft(tmp_path / 'compiled', model, rows, **shape, **COMPILED), 2, before=by('inductor'))
    assert 'torch.compile: 2 × Qwen2DecoderLayer, one by one' in written
    assert 'torch_compile:' not in written
    alike(tmp_path / 'plain', tmp_path / 'compiled')

    saves = {'save_interval': 2, 'save_total_limit': 2}
    again = sft(tmp_path / 'again', model, rows, '--resume', 'auto', **saves, **shape, **COMPILED)
    killed(again, before=by('inductor', dies_in_step(4)))
    assert (tmp_path / 'again' / 'slice_2').is_dir() and not (tmp_path / 'again' / 'slice_end').is_dir()
    succeed(again, 2, before=by('inductor'))
    alike(tmp_path / 'plain', tmp_path / 'again')


@pytest.mark.extended
def test_a_run_with_rollouts_generates_and_trains(tiny: Tiny, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / 'rows.jsonl', text_rows(14))
    (tmp_path / 'rewards.py').write_text(REWARD)
    more = {**ONLINE, 'reward_functions': f'[{tmp_path}/rewards.py:brief]', 'beta': 0.1, **LORA}
    argv = sft(tmp_path / 'run', tiny('qwen2'), rows, **more, **COMPILED)
    grpo = find_run('text_to_text', 'grpo')[1]
    written = succeed(argv, before=by('aot_eager'), algorithm=grpo)
    assert 'torch.compile: 2 × Qwen2DecoderLayer' in written and 'torch_compile:' not in written


@pytest.mark.extended
def test_a_denoiser_ends_where_one_without_does(tiny: Tiny, tmp_path: Path) -> None:
    rows, model = denoising.write_digits(tmp_path), tiny('sd3')
    shape = {'per_device_train_batch_size': 4, 'adam_epsilon': 1e-3, 'ds_cfgs': 'ds_z2_config.json'}
    pair = {'pair': denoising.PICTURES}
    succeed(denoising.offline(tmp_path / 'plain', model, rows, **shape), **pair)
    argv = denoising.offline(tmp_path / 'compiled', model, rows, **shape, torch_compile=True)
    written = succeed(argv, before=by('aot_eager'), **pair)
    assert 'torch.compile: 1 × JointTransformerBlock, one by one' in written and 'torch_compile:' not in written
    told = [denoising.metrics(tmp_path / name, 'train/loss') for name in ('plain', 'compiled')]
    torch.testing.assert_close(*map(torch.tensor, told), rtol=1e-4, atol=1e-6)


@pytest.mark.extended
def test_a_dry_run_says_what_is_compiled(tiny: Tiny, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / 'rows.jsonl', text_rows(4))
    output = succeed(sft(tmp_path / 'run', tiny('qwen2'), rows, '--dry_run', **COMPILED))
    assert '2 × Qwen2DecoderLayer, one by one' in ' '.join(output.replace('│', ' ').split())
    assert 'by segment, with sdpa' in output
