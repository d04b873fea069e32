"""Checkpoints: `slice_<step>` folders that are complete or absent, and that plain transformers loads."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from align_anything.core.distributed import all_gather_object, broadcast_object, is_main, rank, world_size
from align_anything.core.errors import CheckpointError, SettingsError
from align_anything.core.files import atomic_write_json, disk_problem, free_bytes, sync_folder

MANIFEST = 'manifest.json'
STATE_FOLDER = 'state'
BEST_NAME = 'slice_best'
CARD_FILE = 'README.md'
FULL = 1 << 20
"""Free bytes below which a disk is taken to be full by a writer that does not say why it failed."""
_NUMBERED = re.compile(r'slice_(\d+)$')


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint folder and the optimizer step it was taken after."""

    path: Path
    step: int

    @property
    def state(self) -> Path:
        return self.path / STATE_FOLDER


def checkpoints_in(output_dir: Path) -> list[Checkpoint]:
    """Complete checkpoints in a folder, oldest first. A folder without its manifest is not one."""
    found = []
    for path in output_dir.glob('slice_*') if output_dir.is_dir() else []:
        match = _NUMBERED.match(path.name)
        if match and (path / MANIFEST).is_file():
            found.append(Checkpoint(path, int(match.group(1))))
    return sorted(found, key=lambda item: item.step)


def find_checkpoint(resume: str | None, output_dir: Path) -> Checkpoint | None:
    """The checkpoint to resume from: for `auto` the newest of `output_dir`, None without one; else that at a path.

    Raises SettingsError for a path that is not a complete checkpoint, naming those that are.
    """
    if resume is None:
        return None
    if resume == 'auto':
        return (checkpoints_in(output_dir) or [None])[-1]
    path = Path(resume)
    match = _NUMBERED.match(path.name)
    if not match or not (path / MANIFEST).is_file():
        complete = ', '.join(str(item.path) for item in checkpoints_in(path) or checkpoints_in(path.parent)) or 'none'
        raise SettingsError([f'--resume {resume}: not a complete slice_<step> folder. Complete there: {complete}.'])
    return Checkpoint(path, int(match.group(1)))


def read_manifest(item: Checkpoint) -> dict[str, Any]:
    """The record that `write_checkpoint` left: progress and what the resumed run must agree with.

    Raises SettingsError when the checkpoint holds no training state, or when files of it were lost or truncated since.
    """
    file = item.path / MANIFEST
    others = [other.path.name for other in checkpoints_in(item.path.parent) if other != item]
    choose = f'Go on from another checkpoint ({", ".join(others) or "there is none"}), or start afresh.'
    try:
        manifest = json.loads(file.read_text(encoding='utf-8'))
    except ValueError as error:
        raise SettingsError([f'--resume: {file} is damaged ({error}). {choose}']) from error
    if not item.state.is_dir():
        raise SettingsError(
            [f'--resume: {item.path} holds no training state (saved with save_checkpoint off). {choose}']
        )
    found = _sizes(item.path)
    damaged = [name for name, size in manifest['files'].items() if found.get(name) != size]
    if damaged:
        raise SettingsError(
            [f'--resume: in {item.path}, these files are missing or truncated: {", ".join(damaged)}. {choose}']
        )
    return manifest


def write_checkpoint(
    output_dir: Path,
    name: str,
    *,
    write_model: Callable[[Path], None],
    write_state: Callable[[Path], None] | None,
    manifest: Mapping[str, Any],
) -> Path:
    """Writes a checkpoint so that a kill at any moment leaves either none or a complete one. Every rank calls it.

    `write_model` and `write_state` get the draft folder; both run on every rank. The folder gets its name, in one
    rename, only after every rank has written and the manifest is on disk.

    Raises CheckpointError on every rank where one of them cannot write.
    """
    draft, final = begin_draft(output_dir, name)
    fill(draft, final, write_model, write_state)
    with together(final, draft):
        if is_main():
            _sync_tree(draft)
    publish(draft, final, manifest)
    return final


def begin_draft(output_dir: Path, name: str) -> tuple[Path, Path]:
    """Makes the folder in which a checkpoint is written; returns it, and the name that it will get."""
    final, draft = output_dir / name, output_dir / f'.{name}.partial'
    with together(final, output_dir):
        if is_main():
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
    return draft, final


def fill(
    folder: Path, final: Path, write_model: Callable[[Path], None], write_state: Callable[[Path], None] | None
) -> None:
    """Writes the model and the state of training to a folder, as `write_checkpoint` does."""
    with together(final, folder):
        write_model(folder)
    if write_state is None:
        return
    state = folder / STATE_FOLDER
    with together(final, folder):
        state.mkdir(exist_ok=True)
    with together(final, state):
        write_state(state)
        torch.save(random_state(), state / f'random_rank{rank()}.pt')


def publish(draft: Path, final: Path, manifest: Mapping[str, Any]) -> None:
    """Gives its name to a checkpoint that all ranks have written and brought to the disk. Every rank calls it."""
    with together(final, draft):
        if is_main():
            atomic_write_json(draft / MANIFEST, {**manifest, 'world_size': world_size(), 'files': _sizes(draft)})
            retired = final.with_name(f'.{final.name}.retired')
            shutil.rmtree(retired, ignore_errors=True)
            if final.exists():
                os.replace(final, retired)
            os.replace(draft, final)
            sync_folder(final.parent)
            shutil.rmtree(retired, ignore_errors=True)


@contextmanager
def together(final: Path, folder: Path) -> Iterator[None]:
    """Ends with a CheckpointError on every rank where what one of them writes to `folder` in its block failed.

    Within it, what fails on one rank alone must not leave others in a collective. `final` is the checkpoint that is
    written. An error that is none of the disk is raised as it is where it happened.
    """
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        why = _why(error, folder)
        told = all_gather_object(_told(error, why, folder))
        if not why:
            raise
        raise CheckpointError(_message(final, told)) from error
    else:
        told = all_gather_object('')
        if any(told):
            raise CheckpointError(_message(final, told))


def _message(final: Path, told: Sequence[str]) -> str:
    """What is wrong with a checkpoint, given what each rank says of its share; nothing is an empty text."""
    first, *others = [number for number, words in enumerate(told) if words]
    also = f'So it is on rank {", ".join(map(str, others))}. ' if others else ''
    return f'the checkpoint {final} is not complete: {told[first]} {also}--resume auto goes on from the one before it.'


def _why(error: Exception, folder: Path) -> str:
    """What keeps a disk from being written to; an empty text for other errors."""
    # torch does not say why it could not write, and safetensors only in words.
    problem, free = disk_problem(error, folder), free_bytes(folder)
    if problem or free >= FULL:
        return problem
    return f'{folder} cannot be written: the disk is full ({free} bytes are free). Free some space.'


def _told(error: Exception, why: str, folder: Path) -> str:
    where = f'on rank {rank()} ({socket.gethostname()}), ' if world_size() > 1 else ''
    return where + (f'after {sum(_sizes(folder).values())} bytes of it, {why}' if why else f'{error!r}.')


def prune(output_dir: Path, keep: int) -> None:
    """Deletes all but the newest `keep` numbered checkpoints, and drafts that a killed run left. Main rank only."""
    old = checkpoints_in(output_dir)
    for item in old[: max(len(old) - keep, 0)]:
        # The manifest goes first, so that a half-deleted checkpoint is never taken for a complete one.
        (item.path / MANIFEST).unlink()
        shutil.rmtree(item.path)
    for draft in output_dir.glob('.slice_*.partial'):
        shutil.rmtree(draft)


def set_aside(output_dir: Path, after: int) -> list[Path]:
    """Renames the checkpoints of an earlier run past step `after` to `slice_<step>.old`; returns the new names.

    Left as they are, they would pass for newer ones of the run that begins: pruning would delete its checkpoints before
    them, and `auto` would go on from them. So would the best model where the run begins anew. Main rank only.
    """
    stale = [item.path for item in checkpoints_in(output_dir) if item.step > after]
    best = output_dir / BEST_NAME
    stale += [best] if after == 0 and best.is_dir() else []
    renamed = []
    for path in stale:
        target = path.with_name(f'{path.name}.old')
        shutil.rmtree(target, ignore_errors=True)
        renamed.append(path.rename(target))
    return renamed


def random_state() -> dict[str, Any]:
    """The state of every random number generator of training in this process."""
    state: dict[str, Any] = {'torch': torch.get_rng_state(), 'python': random.getstate()}
    if torch.cuda.is_available():
        state['cuda'] = torch.cuda.get_rng_state()
    return state


def restore_random_state(folder: Path) -> None:
    """Restores this rank's generators from a checkpoint's state folder."""
    state = torch.load(folder / f'random_rank{rank()}.pt', weights_only=True)
    torch.set_rng_state(state['torch'])
    version, internal, gauss = state['python']
    random.setstate((version, tuple(internal), gauss))
    if 'cuda' in state:
        torch.cuda.set_rng_state(state['cuda'])


def agree_on_checkpoint(item: Checkpoint | None) -> Checkpoint | None:
    """The main rank's choice, on every rank: a slower file system must not let ranks resume from different ones."""
    return broadcast_object(item)


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file below a folder, by relative path, but of the manifest and of the card, which people edit."""
    files = (path for path in sorted(folder.rglob('*')) if path.is_file() and path.name not in (MANIFEST, CARD_FILE))
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob('*'):
        if path.is_file():
            with open(path, 'rb') as file:
                os.fsync(file.fileno())
