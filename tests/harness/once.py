"""What takes seconds to make is made once a run, whichever xdist worker needs it first."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock


def once(shared: Path, name: str, make: Callable[[Path], object]) -> Path:
    """The folder `name` in `shared`, the fixture `shared_cache`, which `make(folder)` fills unless it has before.

    Others wait until it has. What a failed attempt left is thrown away. Do not write into what is there.
    """
    folder, done = shared / name, shared / f'{name}.done'
    with FileLock(shared / f'{name}.lock'):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            done.touch()
    return folder
