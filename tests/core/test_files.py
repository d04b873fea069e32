"""Atomic writes: old or new, never half. Folders that can be written to."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from align_anything.core.errors import ModelError, SettingsError
from align_anything.core.files import atomic_write_json, atomic_write_text, lines_of, new_folder, writable_folder


def test_writes_and_replaces(tmp_path: Path) -> None:
    target = tmp_path / 'deep' / 'er' / 'note.txt'
    atomic_write_text(target, 'first')
    atomic_write_text(target, 'zweite Zeile: ä')
    assert target.read_text(encoding='utf-8') == 'zweite Zeile: ä'
    assert [entry.name for entry in target.parent.iterdir()] == ['note.txt']


def test_a_failure_keeps_the_old_content_and_leaves_no_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / 'note.txt'
    atomic_write_text(target, 'old')

    def full_disk(_: int) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full_disk)
    with pytest.raises(OSError, match='No space left'):
        atomic_write_text(target, 'new')
    assert target.read_text() == 'old'
    assert [entry.name for entry in tmp_path.iterdir()] == ['note.txt']


def test_json_round_trip(tmp_path: Path) -> None:
    value = {'name': 'größe', 'half a pair': '\ud800', 'list': [1, 2.5, None]}
    atomic_write_json(tmp_path / 'a.json', value)
    assert json.loads((tmp_path / 'a.json').read_text(encoding='utf-8')) == value
    with pytest.raises(TypeError):
        atomic_write_json(tmp_path / 'a.json', {'bad': object()})
    assert json.loads((tmp_path / 'a.json').read_text(encoding='utf-8')) == value


def test_lines_end_with_line_feeds_and_carriage_returns_alone() -> None:
    assert lines_of('a\u2028b\x85c\r\n\nd\re') == ['a\u2028b\x85c', '', 'd', 'e']
    assert lines_of('a\n') == ['a'] and lines_of('') == []


def test_a_folder_is_made_and_tried(tmp_path: Path) -> None:
    folder = writable_folder(tmp_path / 'deep' / 'er', 'a_cfgs.folder')
    assert folder.is_dir() and not list(folder.iterdir())
    (folder / 'file').touch()
    with pytest.raises(SettingsError, match=r'a_cfgs\.folder: .*file cannot be written to: .*exists'):
        writable_folder(folder / 'file', 'a_cfgs.folder')


def test_a_new_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / 'model'
    with pytest.raises(ValueError, match='in the middle'), new_folder(out) as draft:
        (draft / 'half').touch()
        raise ValueError('in the middle')
    assert [*tmp_path.iterdir()] == []
    with new_folder(out) as draft:
        (draft / 'config.json').touch()
        assert not out.exists()
    assert [path.name for path in tmp_path.rglob('*')] == ['model', 'config.json']
    with pytest.raises(ModelError, match='exists and is not an empty folder'), new_folder(out):
        raise AssertionError('nothing is begun')
    with pytest.raises(ModelError, match='cannot be written'), new_folder(tmp_path / 'full'):
        raise OSError(28, 'No space left on device')
