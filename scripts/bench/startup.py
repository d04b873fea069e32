"""How long a person waits: for the import of the package, and for the first optimizer step."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil

from scripts.bench import ours
from scripts.bench.report import Ratio, say
from scripts.bench.work import QUICK, Size, text_rows, write_rows

ROOT = Path(__file__).resolve().parents[2]
IMPORT = 'import time; start = time.perf_counter(); import align_anything; print(time.perf_counter() - start)'
FIRST_STEP = 'step 1/1'


def startup(folder: Path, size: Size) -> list[Ratio]:
    """Each figure is the best of several fresh processes, ours and the bare one in turn.

    That of the import is seconds by the clock on the wall. Those up to the first step are seconds of CPU, of a process
    and all that it starts, since other work on a machine changes the wall clock's by half.
    """
    from align_anything.testing.tiny import build

    model = build('qwen2', folder / 'model')
    data = write_rows(folder / 'rows.jsonl', text_rows(model, QUICK, 4))
    imports, runs, bares = [], [], []
    # The first pair only warms the disk cache and builds DeepSpeed's communication op where it was never built; at
    # tiny sizes it is all there is.
    for number in range(size.startups + 1):
        argv = ours.settings(model, data, folder / f'run_{number}', per_device_train_batch_size=1, max_steps=1)
        bare = _until_first_step([sys.executable, str(ROOT / 'scripts/bench/bare.py'), str(model)])
        run = _until_first_step([sys.executable, '-m', 'align_anything.trainers.text_to_text.sft', *argv])
        imported = subprocess.run([sys.executable, '-c', IMPORT], **_PLACE, check=True, capture_output=True).stdout
        say(f'  round {number}: run {run:.2f}, bare script {bare:.2f} CPU seconds')
        if number or not size.startups:
            imports.append(float(imported))
            runs.append(run)
            bares.append(bare)
    return [
        Ratio('import align_anything', min(imports), 1.0, at_most=True, detail='seconds'),
        Ratio(
            'start to first optimizer step: run / bare script',
            min(runs) / min(bares),
            0.9,
            at_most=True,
            detail=f'{min(runs):.2f} against {min(bares):.2f} CPU seconds',
        ),
    ]


_PLACE = {'cwd': ROOT, 'env': {**os.environ, 'PYTHONPATH': str(ROOT)}}


def _until_first_step(command: list[str]) -> float:
    """CPU seconds from the start of a process until it says that its first step is done; RuntimeError if it fails."""
    process = subprocess.Popen(command, **_PLACE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    seconds, lines = None, []
    for line in process.stderr:
        lines.append(line)
        if seconds is None and FIRST_STEP in line:
            seconds = _cpu_seconds(process.pid)
    if process.wait() or seconds is None:
        raise RuntimeError(f'{" ".join(command)} failed:\n{"".join(lines[-30:])}')
    return seconds


def _cpu_seconds(pid: int) -> float:
    """What a process has used so far, with the children that it has and those that have ended."""
    first = psutil.Process(pid)
    times = [process.cpu_times() for process in (first, *first.children(recursive=True))]
    return sum(used.user + used.system + used.children_user + used.children_system for used in times)
