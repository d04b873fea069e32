"""Checkpoints that a thread copies from memory: what it writes, what it votes, and what it says of a full disk."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from threading import Event

import pytest

from align_anything.core.errors import CheckpointError
from align_anything.engines import staging
from align_anything.engines.checkpoint import checkpoints_in


def model(folder: Path) -> None:
    (folder / 'inner').mkdir()
    (folder / 'inner' / 'weights').write_bytes(bytes(range(256)))


def state(folder: Path) -> None:
    (folder / 'moments').write_text('all of them')


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """An output folder with a checkpoint, and a staging folder."""
    for name in ('out/slice_1', 'memory'):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / 'out/slice_1/manifest.json').write_text('{}')
    return tmp_path / 'out', tmp_path / 'memory'


def staged(folders: tuple[Path, Path]) -> staging.Staged:
    output, memory = folders
    return staging.stage_checkpoint(
        output, 'slice_2', memory, write_model=model, write_state=state, manifest={'progress': {'step': 2}}
    )


def test_the_memory_has_no_names_and_the_checkpoint_its_own_when_all_is_written(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    output, memory = folders
    goes_on, inner = Event(), staging.copy_durably
    monkeypatch.setattr(staging, 'copy_durably', lambda *given: (goes_on.wait(60), inner(*given)))
    left = staging.staging_folder(memory, output)
    left.mkdir()
    (left / 'of a run that was killed').touch()
    writing = staged(folders)
    assert not [*memory.iterdir()] and not writing.ended and writing.vote() == 0
    assert [item.step for item in checkpoints_in(output)] == [1]
    goes_on.set()
    writing.conclude()
    assert writing.ended and writing.vote() == 1
    newest = checkpoints_in(output)[-1]
    assert newest.step == 2 and (newest.path / 'inner/weights').read_bytes() == bytes(range(256))
    manifest = json.loads((newest.path / 'manifest.json').read_text())
    assert manifest['progress'] == {'step': 2} and manifest['world_size'] == 1
    assert {*manifest['files']} == {'inner/weights', 'state/moments', 'state/random_rank0.pt'}
    assert sorted(path.name for path in output.iterdir()) == ['slice_1', 'slice_2']


def test_a_disk_that_is_full_leaves_the_checkpoint_before(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    output, memory = folders

    def full(source: object, target: object, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writing = staged(folders)
    writing.conclude()
    monkeypatch.setattr(staging.shutil, 'copyfileobj', full)
    writing = staging.stage_checkpoint(output, 'slice_3', memory, write_model=model, write_state=state, manifest={})
    with pytest.raises(CheckpointError) as told:
        writing.conclude()
    words = str(told.value)
    assert f'the checkpoint {output}/slice_3 is not complete: after 0 bytes of it' in words
    assert f'{output}/.slice_3.partial/inner/weights cannot be written: the disk is full' in words
    assert writing.vote() == 1 and [item.step for item in checkpoints_in(output)] == [1, 2]


def test_what_is_no_matter_of_the_disk_is_raised_as_it_is(folders: tuple[Path, Path]) -> None:
    def broken(folder: Path) -> None:
        raise ValueError('a fault of ours')

    with pytest.raises(ValueError, match='a fault of ours'):
        staging.stage_checkpoint(folders[0], 'slice_2', folders[1], write_model=broken, write_state=None, manifest={})
    assert not [*folders[1].iterdir()]
