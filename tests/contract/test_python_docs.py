"""What docs/python.md says is so: its blocks run one after the other, its sweep is one, and its arguments are there."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align_anything.api.training import train
from align_anything.cli.sweeping import check
from align_anything.configs.sweep import read_sweep
from tests.harness.notebooks import in_a_process

TEXT = (Path(__file__).resolve().parents[2] / 'docs' / 'python.md').read_text()
BLOCKS = re.findall(r'```python\n(.*?)```', TEXT, re.DOTALL)
LIGHT = {'ALIGN_ANYTHING__BF16': 'False', 'ALIGN_ANYTHING__LOG_TYPE': 'none', 'ALIGN_ANYTHING__NUM_WORKERS': '0'}


def test_its_blocks_run(tiny: Callable[..., Path], tmp_path: Path) -> None:
    model = tiny('qwen2')

    def body() -> list[str]:
        os.chdir(tmp_path)
        Path('Qwen').mkdir()
        Path('Qwen/Qwen2.5-0.5B-Instruct').symlink_to(model)
        os.environ |= LIGHT
        namespace: dict[str, Any] = {'__name__': '__main__'}
        for block in BLOCKS:
            exec(block, namespace)
        assert 'train/reward/brevity' in namespace['rewarded'].metrics
        return sorted(path.name for path in Path('output').iterdir())

    assert in_a_process(body) == ['dpo', 'grpo', 'measured', 'sft']


def test_its_arguments_are_those_of_train() -> None:
    table = TEXT.split('| argument | |')[1].split('\n\n')[0]
    told = {name for row in table.splitlines()[2:] for name in re.findall('`([a-z_]+)`', row.split('|')[1])}
    assert told == {*inspect.signature(train).parameters} - {'settings'}


def test_its_sweep_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r'```yaml\n(.*?)```', TEXT, re.DOTALL)
    Path('sweep.yaml').write_text(block)
    cfgs = read_sweep(Path('sweep.yaml'))
    check(cfgs, 'sweep.yaml')
    assert len(cfgs.grid()) == 4
