"""Runs code as `python -c` would, in a fork of this process: what the code does is new, what it imports is not.

    done = python('import align_anything, sys; print(sys.argv[1])', 'word', folder=tmp_path, path=[tmp_path])
    assert (done.returncode, done.stdout) == (0, 'word\\n')

The package is imported anew, from `path` where it is there, and what it told others of itself is forgotten. Torch,
transformers and the like stay imported, which takes an interpreter of its own about ten seconds.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from tests.harness.ranks import check_forkable

PACKAGE = 'align_anything'
AUTO = 'configuration feature_extraction image_processing modeling processing tokenization video_processing'


def python(
    code: str, *words: str, folder: Path, path: Sequence[Path] = (), timeout: float = 280.0
) -> subprocess.CompletedProcess[str]:
    """What `python -c code *words` does in `folder`, with `path` before all other folders that are imported from.

    Raises TimeoutError when it takes longer than `timeout` seconds.
    """
    check_forkable()
    # Imported here for all that will be forked; nothing of it is the package's.
    import transformers.models.auto.modeling_auto  # noqa: F401

    with tempfile.TemporaryDirectory(prefix='fresh-') as name:
        files = [Path(name, stream) for stream in ('stdout', 'stderr')]
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            _child(code, words, folder, path, files)
        code_of_it = _wait(child, timeout)
        said = [file.read_text() if file.exists() else '' for file in files]
    return subprocess.CompletedProcess([*words], code_of_it, *said)


def _child(code: str, words: Sequence[str], folder: Path, path: Sequence[Path], files: Sequence[Path]) -> NoReturn:
    gc.freeze()
    ended = 1
    try:
        for number, file in enumerate(files, start=1):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
        sys.stdout, sys.stderr = (os.fdopen(number, 'w', buffering=1) for number in (1, 2))
        os.chdir(folder)
        sys.argv = ['-c', *words]
        sys.path[:0] = ['', *map(str, path)]
        _forget()
        try:
            exec(compile(code, '<string>', 'exec'), {'__name__': '__main__'})
            ended = 0
        except SystemExit as leaving:
            ended = int(leaving.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended)


def _forget() -> None:
    """Makes this process one that never imported the package."""
    for modules in (sys.modules, logging.root.manager.loggerDict):
        for name in [name for name in modules if name.startswith(PACKAGE)]:
            del modules[name]
    # Those of pytest.
    logging.root.handlers.clear()
    for name in AUTO.split():
        for known in vars(importlib.import_module(f'transformers.models.auto.{name}_auto')).values():
            if '_extra_content' in getattr(known, '__dict__', {}):
                known._extra_content.clear()
    importlib.invalidate_caches()


def _wait(child: int, timeout: float) -> int:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise TimeoutError(f'the code did not end within {timeout:g} s')
