"""Calling a demo as `make` does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


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
    said = done.stdout + done.stderr
    assert not [line for line in said.splitlines() if re.search(r'WARNING|\[INFO\]|Traceback', line)], said
    return done
