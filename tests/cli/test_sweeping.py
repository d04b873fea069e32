"""`align-anything sweep`: which trials there are, the table, failures, going on, and what is refused."""

from __future__ import annotations

import csv
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from align_anything.cli.sweeping import Sweep, sweep
from align_anything.configs.sweep import read_sweep
from align_anything.core.errors import SettingsError
from tests.trainers.runs import text_rows, write_rows

# In place of a training: a loss that is least at a rate of 0.01 and three epochs, and a failure on demand.
STANDIN = """
import json, os, pathlib, sys, time, yaml
given = dict(zip(sys.argv[3::2], sys.argv[4::2]))
asked = yaml.safe_load(open(given['--config']))
folder = pathlib.Path(given['--output_dir'])
folder.mkdir(parents=True, exist_ok=True)
runs = folder / 'runs'
runs.write_text((runs.read_text() if runs.exists() else '') + given['--resume'])
if pathlib.Path('stop').exists():
    pathlib.Path('begun').touch()
    time.sleep(60)
if asked.get('epochs') == 7 and not pathlib.Path('mended').exists():
    sys.exit('[align-anything] ERROR SettingsError:\\n- epochs: seven are too many')
loss = abs(float(asked['learning_rate']) - 0.01) + abs(asked.get('epochs', 3) - 3)
lines = [{'step': 1, 'train/loss': 9.0}, {'step': 1, 'eval/loss': 8.0}, {'step': 2, 'eval/loss': loss}]
(folder / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\\n' for line in lines))
"""
FILE = """
pair: text_to_text
algorithm: sft
metric: eval/loss
direction: minimize
output_dir: found
settings:
  model_cfgs: {model_name_or_path: m}
  train_datasets: rows.jsonl
  train_template: Instruction
  eval_datasets: rows.jsonl
  eval_template: Instruction
search:
  learning_rate: [0.1, 0.01]
  epochs: [3, 7]
"""


def run(folder: Path, text: str = FILE) -> Sweep:
    (folder / 'standin.py').write_text(STANDIN)
    (folder / 'sweep.yaml').write_text(text)
    return sweep(read_sweep(folder / 'sweep.yaml'), 'sweep.yaml', (sys.executable, str(folder / 'standin.py')))


def table(folder: Path) -> list[dict[str, str]]:
    with open(folder / 'found' / 'table.csv', newline='') as file:
        return list(csv.DictReader(file))


def test_a_grid_with_failures_goes_on_and_ends_in_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(tmp_path, f'{FILE}jobs: 2\n')
    best, other, *failed = table(tmp_path)
    assert list(best) == ['trial', 'eval/loss', 'learning_rate', 'epochs', 'state', 'seconds', 'error']
    assert (best['learning_rate'], best['epochs'], best['eval/loss']) == ('0.01', '3', '0')
    assert (other['learning_rate'], other['eval/loss']) == ('0.1', '0.09')
    assert [row['state'] for row in failed] == ['failed'] * 2
    assert all('SettingsError: - epochs: seven are too many' in row['error'] for row in failed)
    page = (tmp_path / 'found' / 'table.html').read_text()
    assert page.index('trial_002') < page.index('trial_000') < page.index('seven are too many')
    # What failed is tried again, what finished is not, and further values are further trials.
    Path('mended').touch()
    run(tmp_path, FILE.replace('[3, 7]', '[3, 7, 4]'))
    assert [row['state'] for row in table(tmp_path)] == ['finished'] * 6
    began = {file.parents[1].name: file.read_text() for file in Path('found').glob('trial_*/run/runs')}
    assert began == {f'trial_{number:03d}': 'auto' * (2 if number in (1, 3) else 1) for number in range(6)}


def test_a_sweep_that_is_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path('stop').touch()

    def press() -> None:
        while not Path('begun').exists():
            time.sleep(0.05)
        Path('stop').unlink()
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    presses = threading.Thread(target=press)
    presses.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    finally:
        presses.join()
        signal.signal(signal.SIGINT, before)
    assert [row['state'] for row in table(tmp_path)][:1] == ['stopped']
    run(tmp_path)
    assert table(tmp_path)[0]['eval/loss'] == '0' and len(table(tmp_path)) == 4


def test_optuna_finds_better_ones_and_remembers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip('optuna')
    monkeypatch.chdir(tmp_path)
    text = FILE.replace('[0.1, 0.01]', '{low: 0.001, high: 1.0, log: True}').replace('[3, 7]', '{low: 1, high: 6}')
    asked = f'{text}method: optuna\ntrials: 6\nseed: 1\n'
    first = run(tmp_path, asked)
    assert len(first.trials) == 6 and all(type(trial.search['epochs']) is int for trial in first.trials)
    values = [trial.value for trial in first.ranked()]
    assert values == sorted(values) and all(0.001 <= trial.search['learning_rate'] <= 1 for trial in first.trials)
    more = run(tmp_path, asked.replace('trials: 6', 'trials: 9'))
    assert [trial.search for trial in more.trials[:6]] == [trial.search for trial in first.trials]
    assert len(more.trials) == 9
    with pytest.raises(SettingsError, match=r'holds trials of another search, such as trial_000 \(learning_rate'):
        run(tmp_path, asked.replace('high: 6', 'high: 6000').replace('low: 1,', 'low: 100,'))
    with pytest.raises(SettingsError, match='holds another sweep, with another direction'):
        run(tmp_path, asked.replace('minimize', 'maximize'))


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        (('learning_rate: [', 'lerning_rate: ['), r"sweep.yaml\(lerning_rate=…\): there is no key 'lerning_rate'. Did"),
        (('[3, 7]', '[3, many]'), r'train_cfgs.epochs = .many. \(sweep.yaml\(epochs=…\)\): expected'),
        (('[3, 7]', '{low: 1, high: 3}'), 'search.epochs is a range, which method: grid has no end of'),
        (('[3, 7]', '[3, 7, 3]'), 'search.epochs lists 3 twice'),
        (('[3, 7]', '[]'), 'search.epochs lists no value'),
        (('settings:', 'settings:\n  output_dir: x'), 'output_dir is what the sweep gives to each trial'),
        (('settings:', 'settings:\n  epochs: 1'), 'epochs stands under settings and under search'),
        (('algorithm: sft', 'algorithm: stf'), "has no algorithm 'stf'. Did you mean 'sft'?"),
        (('direction: minimize', 'direction: down'), 'direction'),
        (('metric: eval/loss', 'metrics: eval/loss'), "there is no key 'metrics'. Did you mean 'metric'?"),
        (('[3, 7]', '3'), 'search.epochs: give a list of values, or a range {low, high, log}'),
    ],
)
def test_what_is_refused(change: tuple[str, str], said: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=said):
        run(tmp_path, FILE.replace(*change))
    assert not list(tmp_path.glob('found/trial_*'))


@pytest.mark.extended
@pytest.mark.slow
def test_real_trainings(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / 'rows.jsonl', text_rows(6))
    short = '\n  '.join(
        ['bf16: False', 'num_workers: 0', 'eval_strategy: epoch', 'log_type: none', 'per_device_train_batch_size: 3']
    )
    text = FILE.replace('name_or_path: m', f'name_or_path: {tiny("llama")}').replace('search:', f'  {short}\nsearch:')
    (tmp_path / 'sweep.yaml').write_text(text.replace('[3, 7]', '[1]'))
    made = sweep(read_sweep(tmp_path / 'sweep.yaml'), 'sweep.yaml')
    assert [trial.state for trial in made.trials] == ['finished'] * 2
    assert made.ranked()[0].value < made.ranked()[1].value
