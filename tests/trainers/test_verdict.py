"""Whether a run fits into a device, and what would make it fit, as counted from the models that these settings make."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from align_anything.cli.leaves import find_run
from align_anything.configs.schema import RunCfgs
from align_anything.core.errors import ModelError
from align_anything.trainers.launch import settings_of
from align_anything.trainers.runs.verdict import GIB, SHARE, verdict
from tests.trainers.runs import sft, succeed, text_rows, write_rows
from tests.trainers.test_dry_run import plain


@pytest.fixture(scope='module')
def wide(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A checkpoint whose weights take some GiB with what trains them, and are not there; how many there are."""
    folder = shutil.copytree(tiny('llama'), tmp_path_factory.mktemp('wide') / 'model')
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps({**config, 'intermediate_size': 400_000}))
    with torch.device('meta'):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    return folder, sum(parameter.numel() for parameter in model.parameters())


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / 'rows.jsonl', text_rows(10))


def judged(rows: Path, out: Path, model: Path, size: str, ranks: int = 1, **settings: Any) -> str:
    return plain(succeed(sft(out, model, rows, f'--dry_run={size}', **settings), ranks))


def test_what_fits_and_what_does_not(wide: tuple[Path, int], rows: Path, tmp_path: Path) -> None:
    model, count = wide
    output = judged(rows, tmp_path / 'out', model, '64GiB', gradient_checkpointing=False)
    told, device = re.search(r'Fits: about (\S+) GiB of (\S+) GiB a device', output).groups()
    needed = float(told)
    assert needed > 16 * count / 2**30, 'float32 weights, gradients and two moments, and activations'
    assert device == '64'

    output = judged(rows, tmp_path / 'out', model, f'{0.45 * needed:.2f}GiB', gradient_checkpointing=False)
    assert 'Does not fit' in output and 'Fits' not in output
    steps = re.findall(r'^  (--.+): about (\S+) GiB(, which fits)?$', output, re.M)
    assert [words for words, _, _ in steps] == [
        '--bf16 True',
        '--gradient_checkpointing True',
        '--per_device_train_batch_size 1 --gradient_accumulation_steps 2',
        '--optimizer adamw_8bit',
        '--use_lora True',
    ]
    sizes = [float(size) for _, size, _ in steps]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < SHARE * 0.45 * needed < sizes[-2]
    assert [bool(fits) for *_, fits in steps] == [*[False] * 4, True]
    # What is advised is what takes it.
    words = ' '.join(words for words, _, _ in steps).split()
    settings = dict(zip((word.removeprefix('--') for word in words[::2]), words[1::2], strict=True))
    assert f'Fits: about {steps[-1][1]} GiB' in judged(
        rows, tmp_path / 'out', model, f'{0.45 * needed:.2f}GiB', **settings
    )


def test_what_no_setting_makes_fit_and_what_is_shared(wide: tuple[Path, int], rows: Path, tmp_path: Path) -> None:
    output = judged(rows, tmp_path / 'out', wide[0], '0.001GiB', 2, bf16=True, gradient_checkpointing=True)
    assert '--ds_cfgs ds_z3_config.json' in output and '--ds_cfgs ds_z3_offload_config.json' in output
    assert '--bf16' not in output and 'Even so it does not fit' in output


def asked(**settings: Any) -> RunCfgs:
    """A run that has what is recomputed and one row a micro-batch already."""
    given = {
        'model_name_or_path': 'm', 'train_datasets': 'r', 'train_template': 'Instruction', 'output_dir': 'out',
        'per_device_train_batch_size': 1, **settings,
    }  # fmt: skip
    argv = [word for key, value in given.items() for word in (f'--{key}', str(value))]
    return settings_of(*find_run('text_to_text', 'sft'), argv, {}).cfgs


def advised(cfgs: RunCfgs, *useless: str) -> list[str]:
    """What is advised where each setting spares a GiB but the `useless` ones, and nothing ever fits."""

    def measure(changed: RunCfgs) -> float:
        train = changed.train_cfgs
        has = {
            'optimizer': train.optimizer == 'adamw_8bit',
            'use_lora': changed.lora_cfgs.use_lora,
            'use_bnb': changed.bnb_cfgs.use_bnb,
            'activation_offloading': train.activation_offloading,
            'mlp_tiles': train.mlp_tiles == 8,
            'fsdp_cpu_offload': train.fsdp_cpu_offload,
        }
        if has['mlp_tiles'] and 'refused' in useless:
            raise ModelError('experts are not computed in tiles')
        # Offloaded states spare more than those of 8 bits, which are then none.
        offloaded = 'offload' in (train.ds_cfgs or '')
        return (100 - sum(on for name, on in has.items() if name not in useless) - 3 * offloaded) * GIB

    told = verdict(cfgs, 100 * GIB, True, 1.0, measure)
    assert 'Even so it does not fit' in told
    return re.findall(r'^  (--.+): about', told, re.M)


def test_advice_is_what_a_run_does_not_have_and_what_spares_something_of_it() -> None:
    offloaded = '--ds_cfgs ds_z2_offload_config.json --optimizer deepspeed_cpu_adam'
    aside = ['--activation_offloading True', '--mlp_tiles 8']
    every = ['--optimizer adamw_8bit', '--use_lora True', '--use_bnb True', *aside, offloaded]
    assert advised(asked()) == every
    assert advised(asked(), 'use_bnb', 'refused') == [every[0], every[1], every[3], offloaded]
    assert advised(asked(optimizer='adamw_8bit', use_lora=True, mlp_tiles=8)) == [*every[2:4], offloaded]
    assert advised(asked(ds_cfgs='ds_z2_offload_config.json')) == every[1:-1]
    of_shards = ['--use_lora True', *aside, '--fsdp_cpu_offload True']
    assert advised(asked(engine='fsdp')) == of_shards


def test_without_a_size_it_is_judged_by_the_device_at_hand(tiny: Any, rows: Path, tmp_path: Path) -> None:
    import psutil

    output = plain(succeed(sft(tmp_path / 'out', tiny('llama'), rows, '--dry_run')))
    assert f'of {psutil.virtual_memory().total / 2**30:.3g} GiB a device' in output


@pytest.mark.extended
def test_advice_for_micro_batches_that_go_by_tokens_is_for_full_ones(tiny: Any, rows: Path, tmp_path: Path) -> None:
    settings = {'max_length_per_batch': 10_000_000, 'per_device_train_batch_size': 1}
    output = judged(rows, tmp_path / 'out', tiny('llama'), '0.001GiB', **settings)
    needed = float(re.search(r'Does not fit: about (\S+) GiB', output)[1])
    assert float(re.search(r'--bf16 True: about (\S+) GiB', output)[1]) == pytest.approx(needed / 2, rel=0.01)
