"""What `scripts/gpu_check.sh` is made of, as far as it needs no GPU."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch

from scripts import gpu_steps

SCRIPT = Path(__file__).parents[2] / 'scripts' / 'gpu_check.sh'


def test_rows_are_such_as_its_templates_read(tmp_path: Path) -> None:
    gpu_steps.write_rows(tmp_path)
    for name, keys in (('text', {'instruction', 'output'}), ('prompts', {'prompt'}), ('image', {'messages'})):
        rows = [json.loads(line) for line in (tmp_path / f'{name}.jsonl').read_text().splitlines()]
        assert len(rows) == gpu_steps.ROWS
        assert all(row.keys() == keys for row in rows)
    assert (tmp_path / '15.png').exists()


def test_a_table_says_the_median_behind_the_first_steps(tmp_path: Path) -> None:
    folder = tmp_path / 'text'
    folder.mkdir()
    told = [{'step': step, 'train/tokens_per_second': value} for step, value in enumerate((1, 2, 3, 40, 50, 60))]
    (folder / 'timings.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in told))
    assert gpu_steps.table(tmp_path)[2:] == ['| text | 50 | - | - | - |']


@pytest.mark.skipif(torch.cuda.is_available(), reason='would train for minutes')
def test_without_a_device_it_says_so() -> None:
    done = subprocess.run(['bash', SCRIPT], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert 'no CUDA device' in done.stderr
