"""Calling a demo as `make` does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.harness.fresh import python
from tests.harness.ranks import free_port

ROOT = Path(__file__).resolve().parents[2]
# Stands in for a command: writes down how it was called, and fails in the step that it is told to.
RECORDER = """#!/usr/bin/env bash
printf '%s\\0' "${0##*/}" "$@" >> calls
echo >> calls
[ "${2:-}" != "${FAILS:-none}" ]
"""


def demonstrate(name: str, home: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Calls the script of a demo, through `deepspeed` itself, on one rank. It must say nothing but its own words."""
    path = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
    done = subprocess.run(
        ['bash', ROOT / 'scripts' / name / 'run.sh'],
        cwd=home.parent,
        env={**os.environ, 'PATH': path, 'DEMO_DIR': str(home), **settings},
        capture_output=True,
        text=True,
    )
    check_its_own_words(done)
    return done


def check_its_own_words(done: subprocess.CompletedProcess[str]) -> None:
    said = done.stdout + done.stderr
    assert not [line for line in said.splitlines() if re.search(r'WARNING|\[INFO\]|Traceback', line)], said


def rehearse(name: str, home: Path, steps: int) -> subprocess.CompletedProcess[str]:
    """As `demonstrate` with so many optimizer steps, in half of its time.

    The script calls stand-ins, which write down how. Then the training is called so; what goes before and after it, in
    forks of this process.
    """
    shims = home.parent / 'bin'
    shims.mkdir()
    for command in ('python3', 'deepspeed'):
        (shims / command).write_text(RECORDER)
        (shims / command).chmod(0o755)
    given = {**os.environ, 'PATH': f'{shims}:{os.environ["PATH"]}', 'DEMO_DIR': str(home), 'MASTER_PORT': '23456'}
    script = ['bash', ROOT / 'scripts' / name / 'run.sh']
    failed = subprocess.run(script, cwd=home.parent, env={**given, 'FAILS': 'check'}, capture_output=True, text=True)
    assert failed.returncode == 1 and 'all of it took' not in failed.stdout
    (home.parent / 'calls').unlink()
    told = subprocess.run(script, cwd=home.parent, env=given, capture_output=True, text=True, check=True)
    assert 'all of it took' in told.stdout
    found = [call.split('\0') for call in (home.parent / 'calls').read_text().split('\0\n')[:-1]]
    assert [words[0] for words in found] == ['python3', 'deepspeed', 'python3']
    for command, *words in found:
        if command == 'python3':
            code = 'import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name="__main__")'
            done = python(code, *words, folder=home.parent, timeout=600)
        else:
            words[words.index('--master_port') + 1] = str(free_port())
            around = {**os.environ, 'DS_ACCELERATOR': 'cpu', 'ALIGN_ANYTHING__TRAIN_CFGS__MAX_STEPS': str(steps)}
            done = subprocess.run(
                [Path(sys.executable).parent / 'deepspeed', *words],
                cwd=home.parent,
                env={**around, 'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}'},
                capture_output=True,
                text=True,
            )
        check_its_own_words(done)
        assert done.returncode == 0 or words[1] == 'check', done.stdout + done.stderr
    return done
