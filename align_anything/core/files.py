"""Folders that can be written to, and files of which a reader finds the old content or the new, never half of it."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from align_anything.core.errors import ModelError, SettingsError

FINAL_NAME = 'slice_end'
"""The folder of the trained model inside the output folder of a run."""


def trained_model_in(folder: str | Path) -> Path | None:
    """Returns the trained model in the output folder of a run; None for a checkpoint, and for other folders."""
    files = ('config.json', 'adapter_config.json', 'model_index.json', 'pytorch_lora_weights.safetensors')
    final = Path(folder) / FINAL_NAME
    if any((Path(folder) / name).exists() for name in files) or not any((final / name).exists() for name in files):
        return None
    return final


def disk_problem(error: BaseException, folder: str | Path) -> str:
    """Says in a sentence that a disk is full, or a folder cannot be written to; an empty text for another error.

    `folder` is what was written to where the error does not say so.
    """
    chain, cause = [], error
    while cause is not None:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    numbers = {item.errno for item in chain if isinstance(item, OSError)}
    path = next((item.filename for item in chain if isinstance(item, OSError) and item.filename), folder)
    # Writers in other languages tell of it in words alone.
    if numbers & {errno.ENOSPC, errno.EDQUOT} or any(os.strerror(errno.ENOSPC) in str(item) for item in chain):
        return f'{path} cannot be written: the disk is full ({free_bytes(folder)} bytes are free). Free some space.'
    if numbers & {errno.EROFS, errno.EACCES}:
        return f'{path} cannot be written: {error}.'
    return ''


def free_bytes(folder: str | Path) -> int:
    """Returns the free bytes of the disk that holds the folder, or the nearest one above it."""
    path = Path(folder).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def writable_folder(folder: str | Path, setting: str) -> Path:
    """Makes `folder` where it is missing and returns it. Ranks may do so at once.

    Raises SettingsError, which says which `setting` names the folder, when it cannot be written to.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise SettingsError([f'{setting}: {path} cannot be written to: {error}.']) from error
    return path


@contextmanager
def new_folder(out: str | Path) -> Iterator[Path]:
    """Yields a folder to write into, which becomes `out` when the block ends: whole, or not at all.

    Raises ModelError when `out` is not empty, and for an OSError in the block.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError(f'{out} exists and is not an empty folder; name another one.')
    draft = out.parent / f'.{out.name}.{os.getpid()}.partial'
    try:
        draft.mkdir(parents=True)
        yield draft
        os.replace(draft, out)
        sync_folder(out.parent)
    except OSError as error:
        raise ModelError(f'{out} cannot be written: {error}.') from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def atomic_write_bytes(path: str | Path, content: bytes, durable: bool = True) -> None:
    """Writes `content` to `path` in one step, making missing parent folders.

    A process killed at any moment leaves the old file or the new one. So does a power cut if the write is `durable`,
    which waits for the disk. Raises OSError as `open` does.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Processes of two machines may have the same number.
    draft = target.with_name(f'.{target.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp')
    try:
        with open(draft, 'wb') as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)
    if durable:
        sync_folder(target.parent)


def atomic_write_text(path: str | Path, text: str) -> None:
    """Writes `text` (UTF-8) to `path` in one step, as `atomic_write_bytes` does."""
    atomic_write_bytes(path, encoded(text))


def encoded(text: str) -> bytes:
    """Returns text in UTF-8. Halves of surrogate pairs, which it has no bytes for, are escaped as JSON escapes them."""
    return text.encode('utf-8', 'backslashreplace')


def atomic_write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as indented JSON in one step. Raises TypeError for values that JSON cannot hold."""
    atomic_write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + '\n')


def sync_folder(folder: str | Path) -> None:
    """Makes renames inside `folder` survive a power cut. Raises OSError as `os.open` does."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lines_of(text: str) -> list[str]:
    """Returns the lines of a text, without their ends: line feeds and carriage returns alone.

    `str.splitlines` also ends them at characters that prompts and answers hold, such as U+2028 and U+0085.
    """
    lines = text.replace('\r\n', '\n').replace('\r', '\n').split('\n')
    return lines if lines[-1] else lines[:-1]


def read_json(file: Path) -> dict[str, Any]:
    """Returns the JSON object in a file. Raises ModelError when it holds something else."""
    try:
        content = json.loads(file.read_text(encoding='utf-8'))
    except ValueError as error:
        raise ModelError(f'{file} is not valid JSON: {error}') from error
    if not isinstance(content, dict):
        raise ModelError(f'{file} must hold a JSON object, not {type(content).__name__}.')
    return content
