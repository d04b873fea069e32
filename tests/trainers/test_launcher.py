"""A run of two ranks as a user starts it: `deepspeed --module …`, where the other tests fork theirs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.trainers.runs import lines, sft, text_rows, weights, write_rows


def free_port() -> int:
    with socket.socket() as found:
        found.bind(('', 0))
        return found.getsockname()[1]


@pytest.mark.slow
@pytest.mark.extended
@pytest.mark.timeout(600)
def test_preferences_about_images_on_two_partitioned_ranks(tiny: Callable[..., Path], tmp_path: Path) -> None:
    Image.new('RGB', (40, 30), 'red').save(tmp_path / 'red.png')
    rows = write_rows(tmp_path / 'rows.jsonl', [
        {'prompt': row['instruction'], 'chosen': f'sun {row["output"]}', 'rejected': 'no', 'image': 'red.png'}
        for row in text_rows(12)
    ])  # fmt: skip
    argv = sft(tmp_path / 'run', tiny('llava'), rows, template='Preference', ds_cfgs='ds_z3_config.json', max_steps=3)
    started = ['deepspeed', '--num_gpus', '2', '--master_port', str(free_port()), '--module']
    path = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
    done = subprocess.run(
        [*started, 'align_anything.trainers.text_image_to_text.dpo', *argv],
        cwd=tmp_path,
        env={**os.environ, 'PATH': path, 'DS_ACCELERATOR': 'cpu'},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'ZeRO stage 3' in done.stdout + done.stderr
    records = lines(tmp_path / 'run' / 'metrics.jsonl')
    assert [record['step'] for record in records] == [1, 2, 3]
    # Two pairs on each of two ranks; nothing has been learned before the first step.
    assert [record['train/samples'] for record in records] == [4, 4, 4]
    assert records[0]['train/reward_margin'] == pytest.approx(0.0, abs=1e-5)
    assert records[-1]['train/reward_accuracy'] == 1.0 and records[-1]['train/reward_margin'] > 0.01
    before, after = weights(tiny('llava')), weights(tmp_path / 'run' / 'slice_end')
    assert after.keys() == before.keys() and any(not after[name].equal(before[name]) for name in before)
