"""Runs outlive the page, are found again, and end with a checkpoint: with stand-ins for the launcher and its ranks."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from align_anything.core.errors import SettingsError
from align_anything.serve.ui import runs
from align_anything.serve.ui.curves import POINTS, curves_html, thinned
from align_anything.serve.ui.page import Page
from align_anything.serve.ui.paths import Root
from align_anything.serve.ui.preview import Asked
from align_anything.serve.ui.runs_tab import overview_of, watch

# A launcher that ends all that it has started when it gets a signal, as DeepSpeed's does; its rank, with a worker,
# saves a checkpoint first when it is asked alone.
LAUNCHER = """
import os, pathlib, signal, subprocess, sys, time
words = sys.argv[1:]
module = words[words.index('--module') + 1]
given = dict(zip(words, words[1:]))
folder = pathlib.Path(given['--output_dir'])
(folder / 'environment').write_text(os.environ['COLUMNS'] + ' ' + os.getcwd())
rank = subprocess.Popen([sys.executable, '-c', RANK, str(folder), given.get('--resume', ''), '-m', module])
def end(*_):
    rank.kill()
    sys.exit(1)
signal.signal(signal.SIGTERM, end)
sys.exit(rank.wait())
"""
RANK = """
import os, pathlib, signal, sys, time
folder, resume = pathlib.Path(sys.argv[1]), sys.argv[2]
worker = os.fork()
if worker == 0:
    signal.signal(signal.SIGTERM, lambda *_: (folder / 'worker_was_asked').touch())
    while os.getppid() != 1 and not (folder / 'ended').exists():
        time.sleep(0.02)
    os._exit(0)
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
(folder / 'metrics.jsonl').write_text('{"step": 1, "train/loss": 2.0}\\n{"step": 2, "train/loss": 1.0}\\n')
print('resumed' if resume == 'auto' else 'training', flush=True)
(folder / 'begun').touch()
if resume == 'auto':
    (folder / 'slice_end').mkdir()
elif 'fail' in str(folder):
    print('[align-anything] ERROR DataError:\\n- the rows <are> bad', flush=True)
while not asked and resume != 'auto' and 'fail' not in str(folder):
    time.sleep(0.02)
(folder / 'ended').touch()
os.waitpid(worker, 0)
if asked:
    (folder / 'slice_2').mkdir()
    print('stopped by SIGTERM after step 2; go on with --resume auto', flush=True)
sys.exit(143 if asked else 2 if 'fail' in str(folder) else 0)
"""


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    folder = tmp_path / 'page'
    folder.mkdir()
    program = tmp_path / 'launcher'
    program.write_text(f'#!{sys.executable}\nRANK = {RANK!r}\n{textwrap.dedent(LAUNCHER)}')
    program.chmod(0o755)
    monkeypatch.setattr(runs, '_program', lambda name: str(program) if name == 'deepspeed' else name)
    monkeypatch.chdir(folder)
    yield Page(Root(folder), folder=tmp_path / 'kept')
    for file in folder.rglob(runs.LAUNCH):
        launch = runs.read_launch(file.parent)
        if launch is not None and launch.process is not None:
            for child in [*launch.process.children(recursive=True), launch.process]:
                child.kill()


def asked(output_dir: str, *more: str) -> Asked:
    words = ['--model_name_or_path', 'tiny', '--train_datasets', 'a.jsonl', '--train_template', 'Messages']
    return Asked('text_to_text', 'sft', [*words, '--output_dir', output_dir, *more])


def begun(folder: Path) -> None:
    for _ in range(500):
        if (folder / 'begun').exists():
            return
        runs.wait(folder / 'nowhere', 0.02)
        psutil.time.sleep(0.02)
    raise AssertionError(runs.tail_of(folder))


def test_a_run_is_stopped_with_a_checkpoint_found_again_and_taken_up(page: Page) -> None:
    folder = runs.start(asked('output/one', '--overwrite_output_dir', 'True'), page.root)
    begun(folder)
    assert (folder / 'environment').read_text() == f'{runs.WIDTH} {page.root.folder}'
    assert runs.state_of(folder) == runs.RUNNING
    with pytest.raises(SettingsError, match='goes on writes to output/one'):
        runs.start(asked('output/one'), page.root)
    # Another page, which has not started it, knows it by what is in its folder.
    runs._children.clear()
    assert page.found().runs == ['output/one'] and runs.state_of(folder) == runs.RUNNING
    assert overview_of(page, page.found().runs) == [
        {'folder': 'output/one', 'run': 'text_to_text sft', 'state': 'running'}
    ]
    assert os.getsid(runs.read_launch(folder).pid) != os.getsid(0), 'a session of its own'
    assert runs.stop(folder) == 1
    assert runs.wait(folder, 20) == runs.STOPPED
    assert (folder / 'slice_2').is_dir() and not (folder / 'worker_was_asked').exists()
    assert runs.stop(folder) == 0
    with pytest.raises(SettingsError, match='holds slice_2, metrics.jsonl of another run'):
        runs.start(asked('output/one'), page.root)
    for name in ('begun', 'ended'):
        (folder / name).unlink()
    runs.resume(folder, page.root)
    assert runs.wait(folder, 20) == runs.FINISHED, runs.tail_of(folder)
    settings = runs.read_launch(folder).settings
    assert settings[-2:] == ['--resume', 'auto'] and '--overwrite_output_dir' not in settings
    log = (folder / runs.LOG).read_text()
    assert log.count('$ deepspeed --master_port') == 2 and 'training' in log and 'resumed' in log


def test_what_is_watched_changes_with_the_run_and_not_otherwise(page: Page) -> None:
    folder = runs.start(asked('output/one'), page.root)
    begun(folder)
    (folder / 'completions.html').write_text('<p>answers')
    facts, curves, report, log, known = watch(page, 'output/one', None)
    assert 'running' in facts and '2: train/loss 1' in facts and 'training' in log
    assert '<polyline' in curves and 'train loss 1' in curves and '<iframe' in report and 'sandbox' in report
    again = watch(page, 'output/one', known)
    assert all('__type__' in str(item) for item in again), 'nothing is sent that is there already'
    with open(folder / 'metrics.jsonl', 'a') as file:
        file.write('{"step": 3, "train/loss": 0.25}\n')
    _, curves, report, log, _ = watch(page, 'output/one', known)
    assert '0.25' in curves and '__type__' in str(report) and '__type__' in str(log)
    runs.stop(folder)
    runs.wait(folder, 20)
    assert watch(page, None, known)[0] == '' and 'lies outside' in watch(page, '../x', None)[0]


def test_why_a_run_failed_is_shown(page: Page) -> None:
    folder = runs.start(asked('output/fail'), page.root)
    assert runs.wait(folder, 20) == runs.FAILED
    assert runs.last_words(folder) == '[align-anything] ERROR DataError:\n- the rows <are> bad'
    assert 'the rows &lt;are&gt; bad' in watch(page, 'output/fail', None)[0]


def test_runs_of_others_are_shown_and_left_alone(page: Page) -> None:
    folder = page.root.folder / 'mine'
    folder.mkdir()
    (folder / 'metrics.jsonl').write_text(json.dumps({'step': 1, 'train/loss': 2.0}) + '\n')
    assert page.found().runs == ['mine'] and runs.state_of(folder) == runs.UNKNOWN
    assert runs.stop(folder) == 0
    with pytest.raises(SettingsError, match='was not started here'):
        runs.resume(folder, page.root)
    (folder / runs.LAUNCH).write_text('{"pid": 1}')
    assert runs.read_launch(folder) is None, 'what is damaged is none'


def test_a_process_that_got_the_number_of_another_is_left_alone(page: Page) -> None:
    folder = page.root.folder / 'old'
    folder.mkdir()
    launch = {'pair': 'text_to_text', 'algorithm': 'sft', 'settings': [], 'devices': None, 'command': []}
    (folder / runs.LAUNCH).write_text(json.dumps({**launch, 'pid': os.getpid(), 'began': 1.0}))
    assert runs.state_of(folder) == runs.FAILED and runs.stop(folder) == 0


def test_output_comes_as_it_is_said_and_ends_with_who_reads_it(page: Page) -> None:
    words = [sys.executable, '-c', 'print(1); import time; open("on", "w"); time.sleep(60)']
    said = runs.output_of(words, page.root)
    next(said)
    assert next(said).endswith('1\n')
    said.close()
    assert list(runs.output_of([sys.executable, '-c', 'raise SystemExit(3)'], page.root))[-1].endswith('code 3\n')


def test_curves_of_long_runs_keep_their_peaks(tmp_path: Path) -> None:
    curve = [(step, 1.0) for step in range(10_000)]
    curve[5000] = (5000, 9.0)
    curve[7000] = (7000, -3.0)
    short = thinned(curve)
    assert len(short) <= POINTS + 2 and {(5000, 9.0), (7000, -3.0), curve[-1]} <= {*short}
    assert [step for step, _ in short] == sorted(step for step, _ in short)
    assert curves_html(tmp_path) == ''
