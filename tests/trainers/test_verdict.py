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

from align_anything.trainers.runs.verdict import SHARE
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

    output = judged(rows, tmp_path / 'out', model, f'{0.6 * needed:.2f}GiB', gradient_checkpointing=False)
    assert 'Does not fit' in output and 'Fits' not in output
    steps = re.findall(r'^  (--.+): about (\S+) GiB(, which fits)?$', output, re.M)
    assert [words for words, _, _ in steps] == [
        '--bf16 True',
        '--gradient_checkpointing True',
        '--per_device_train_batch_size 1 --gradient_accumulation_steps 2',
        '--use_lora True',
    ]
    sizes = [float(size) for _, size, _ in steps]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < SHARE * 0.6 * needed < sizes[-2]
    assert [bool(fits) for *_, fits in steps] == [False, False, False, True]
    # What is advised is what takes it.
    words = ' '.join(words for words, _, _ in steps).split()
    settings = dict(zip((word.removeprefix('--') for word in words[::2]), words[1::2], strict=True))
    assert f'Fits: about {steps[-1][1]} GiB' in judged(
        rows, tmp_path / 'out', model, f'{0.6 * needed:.2f}GiB', **settings
    )


def test_what_no_setting_makes_fit_and_what_is_shared(wide: tuple[Path, int], rows: Path, tmp_path: Path) -> None:
    output = judged(rows, tmp_path / 'out', wide[0], '0.1GiB', 2, bf16=True, gradient_checkpointing=True)
    assert '--ds_cfgs ds_z3_config.json' in output and '--ds_cfgs ds_z3_offload_config.json' in output
    assert '--bf16' not in output and 'Even so it does not fit' in output


def test_without_a_size_it_is_judged_by_the_device_at_hand(tiny: Any, rows: Path, tmp_path: Path) -> None:
    import psutil

    output = plain(succeed(sft(tmp_path / 'out', tiny('llama'), rows, '--dry_run')))
    assert f'of {psutil.virtual_memory().total / 2**30:.3g} GiB a device' in output
