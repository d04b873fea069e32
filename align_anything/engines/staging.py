"""Checkpoints that are written while training goes on: made in a folder in memory, from where a thread copies them."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Thread
from typing import Any, BinaryIO

from align_anything.core.distributed import rank, world_size
from align_anything.core.errors import TrainingError
from align_anything.engines.checkpoint import begin_draft, fill, publish, together

COPIED_AT_ONCE = 16 * 2**20


class Staged:
    """A checkpoint whose files this rank has in memory, and copies to its folder in a thread of its own.

    The thread calls no collectives: whether all ranks have written is for training to find out, see `vote`.

    Args:
        draft: the folder in which the checkpoint is written.
        final: the name that it gets.
        manifest: see `write_checkpoint`.
        files: what this rank writes, by path within the folder.
    """

    def __init__(self, draft: Path, final: Path, manifest: Mapping[str, Any], files: Mapping[Path, BinaryIO]) -> None:
        self.draft, self.final, self.manifest = draft, final, manifest
        self._failed: Exception | None = TrainingError('the thread that writes it ended before its time.')
        self._thread = Thread(target=self._copy, args=(files,), name='checkpoint', daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether this rank has written its files, or failed to."""
        return not self._thread.is_alive()

    def vote(self) -> float:
        """Returns a number whose sum over ranks is at least theirs once all have written, or one cannot."""
        if not self.ended:
            return 0.0
        return 1.0 if self._failed is None else float(world_size())

    def conclude(self) -> None:
        """Waits until all ranks have written, and gives the checkpoint its name. Every rank calls it.

        Raises CheckpointError on every rank where one of them cannot write.
        """
        with together(self.final, self.draft):
            self._thread.join()
            if self._failed is not None:
                raise self._failed
        publish(self.draft, self.final, self.manifest)

    def _copy(self, files: Mapping[Path, BinaryIO]) -> None:
        try:
            for name, source in files.items():
                copy_durably(source, self.draft / name)
            self._failed = None
        except OSError as error:  # Raised where all ranks learn of it.
            self._failed = error
        finally:
            for source in files.values():
                source.close()


def stage_checkpoint(
    output_dir: Path,
    name: str,
    staging_dir: Path,
    *,
    write_model: Callable[[Path], None],
    write_state: Callable[[Path], None] | None,
    manifest: Mapping[str, Any],
) -> Staged:
    """As `write_checkpoint`, but writes to `staging_dir`, and returns what brings it to `output_dir` from there.

    The files have no names by then: their memory is free again when they are copied, or when the process ends in
    whatever way.
    """
    draft, final = begin_draft(output_dir, name)
    own = staging_folder(staging_dir, output_dir)
    with together(final, staging_dir):
        shutil.rmtree(own, ignore_errors=True)
        own.mkdir()
    try:
        fill(own, final, write_model, write_state)
        files = {path.relative_to(own): open(path, 'rb') for path in sorted(own.rglob('*')) if path.is_file()}
    finally:
        shutil.rmtree(own, ignore_errors=True)
    return Staged(draft, final, manifest, files)


def staging_folder(staging_dir: Path, output_dir: Path) -> Path:
    """The folder in which this rank makes the checkpoints of a run, the same one when the run goes on."""
    known = f'{output_dir.resolve()} {output_dir.stat().st_ino}'
    return staging_dir / f'align-anything-{hashlib.sha256(known.encode()).hexdigest()[:16]}-{rank()}'


def clear_staging(staging_dir: Path, output_dir: Path) -> None:
    """Removes what this rank of a run that was killed left there."""
    shutil.rmtree(staging_folder(staging_dir, output_dir), ignore_errors=True)


def copy_durably(source: BinaryIO, target: Path) -> None:
    """Copies a file, which is closed then, to the disk. Raises OSError, with the path of `target`."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with source, open(target, 'wb') as out:
            shutil.copyfileobj(source, out, COPIED_AT_ONCE)
            out.flush()
            os.fsync(out.fileno())
    except OSError as error:
        error.filename = error.filename or str(target)
        raise
