"""A store gives back what was put into it or nothing, whoever writes, dies, or tampers with its files."""

from __future__ import annotations

import json
import logging
import os
import signal
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file

from align_anything.core import store as module
from align_anything.core.errors import SettingsError, UnidentifiedError
from align_anything.core.store import FORMAT, HEADER, Identified, TensorStore, digest, identity
from align_anything.core.types import Media
from tests.harness.ranks import run_ranks

SETTING = 'a_cfgs.folder'


def opened(folder: Path, maker: str = 'codes', fingerprint: Any = 'one') -> TensorStore:
    return TensorStore(folder, maker, fingerprint, SETTING)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob('*') if path.is_file())


def test_what_was_put_comes_back(tmp_path: Path) -> None:
    store, base = opened(tmp_path), torch.arange(12.0)
    key = store.key('a row')
    assert store.get(key) is None and key not in store
    tensors = {
        'part': base[3:7],
        'wide': torch.ones(1).expand(3),
        'flag': torch.tensor(True),
        'none': torch.empty(0, 2),
    }
    record = {'reason': 'größer', 'sizes': [1, 2.5, None]}
    store.put(key, tensors, record)
    entry = opened(tmp_path).get(key)
    assert key in store and entry is not None and entry.record == record
    assert all(entry.tensors[name].equal(tensors[name]) for name in tensors) and len(entry.tensors) == 4
    entry.tensors['part'][0] = 9  # What comes back can be written to.
    store.put(key, {}, 'other')
    assert store.get(key) == ({}, 'other') and len(files(tmp_path)) == 1


def test_packs_are_found_after_a_refresh_by_others_too(tmp_path: Path) -> None:
    store, other = opened(tmp_path), opened(tmp_path)
    entries = {store.key(n): {'x': torch.full((n,), float(n)), 'y': torch.tensor(n)} for n in range(5)}
    store.put_all(entries)
    store.put_all({})
    assert len(files(tmp_path)) == 1
    key = next(iter(entries))
    assert key not in other
    other.refresh()
    for found in (other, opened(tmp_path)):
        for key, tensors in entries.items():
            entry = found.get(key)
            assert key in found and entry is not None and entry.tensors.keys() == tensors.keys()
            assert all(entry.tensors[name].equal(tensors[name]) for name in tensors)


def test_another_maker_never_hits(tmp_path: Path) -> None:
    """Neither by its key, nor when a file is put where that of another maker would be."""
    one = opened(tmp_path)
    one.put(one.key('row'), {'x': torch.ones(2)})
    [file] = files(tmp_path)
    for other in (opened(tmp_path, fingerprint='two'), opened(tmp_path, maker='latents')):
        key = other.key('row')
        assert key != one.key('row') and key not in other and one.key('row') not in other
        other.put(key, {'x': torch.zeros(2)})
        assert one.get(one.key('row')).tensors['x'].sum() == 2
        path = next(path for path in files(tmp_path) if path.stem == key)
        path.write_bytes(file.read_bytes())
        assert key not in other, 'it bears the name of one, and is the entry of another'


@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize('harm', ['cut', 'empty', 'garbage', 'record', 'other', *range(0, 100, 7)])
def test_a_broken_file_is_a_miss_with_a_warning(harm: str | int, packed: bool, tmp_path: Path, caplog: Any) -> None:
    store = opened(tmp_path)
    key = store.key('row')
    if packed:
        store.put_all({key: {'x': torch.randn(8)}})
    else:
        store.put(key, {'x': torch.randn(8)}, 'recorded')
    [file] = files(tmp_path)
    whole = file.read_bytes()
    if isinstance(harm, int):
        at = len(whole) * harm // 100
        broken = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    else:
        broken = {
            'cut': whole[:-1],
            'empty': b'',
            'garbage': b'no such format',
            'record': whole.replace(file.stem.encode(), file.stem.encode()[::-1]),
            'other': save({f'{key}/x': torch.randn(8), 'x': torch.randn(8)}),
        }[harm]
    assert broken != whole
    file.write_bytes(broken)
    with caplog.at_level(logging.WARNING):
        again = opened(tmp_path)
        assert again.get(key) is None and key not in again
    assert 'is made anew' in caplog.text and str(file) in caplog.text
    file.write_bytes(whole)
    assert key in opened(tmp_path)


HEADERS = ['[]', '3', '"a"', 'null', '{"__metadata__": null}', '{"__metadata__": {"entry": 3}}', '[' * 100_000]


def signed(told: str) -> str:
    """Returns a header that tells `told`, of no tensors, with the right checksum."""
    checksum = zlib.crc32(b'', zlib.crc32(json.dumps([told, {}], sort_keys=True).encode()))
    return json.dumps({'__metadata__': {HEADER: f'{checksum:08x}{told}'}})


def test_a_file_with_any_other_json_in_it_is_a_miss(tmp_path: Path, caplog: Any) -> None:
    store = opened(tmp_path)
    key = store.key('row')
    store.put(key, {'x': torch.ones(2)})
    [single] = files(tmp_path)
    store.put_all({key: {'x': torch.ones(2)}})
    pack = next(path for path in files(tmp_path) if path != single)
    told = [f'["{pack.stem}", {names}]' for names in ('[]', '3', '"a"', '{"a": 3}', '{"a": ["x"]}', '[["x"]]')]
    for header in [*HEADERS, *map(signed, ['3', 'null', '{}', '[1]', '[' * 100_000, *told])]:
        for path in (single, pack):
            path.write_bytes(len(header.encode()).to_bytes(8, 'little') + header.encode())
        caplog.clear()
        again = opened(tmp_path)
        assert again.get(key) is None and key not in again, header[:50]
        assert str(single) in caplog.text and str(pack) in caplog.text, header[:50]


def test_folders_of_former_layouts_are_ignored(tmp_path: Path, caplog: Any) -> None:
    """`<2 digits>/<key>` of samples and of features, and files of many scores in a folder of their reference."""
    store = opened(tmp_path)
    key, text = store.key('row'), '["dict", {}]'
    entry = {'x': torch.ones(2)}
    (tmp_path / key[:2]).mkdir()
    sample = tmp_path / key[:2] / f'{key}.safetensors'
    for content in (save(entry, {'sample': f'1234 {text}'}), save(entry)):
        sample.write_bytes(content)
        assert key not in opened(tmp_path)
    for fingerprint in ('one', digest('codes', 'one')):
        (tmp_path / fingerprint).mkdir()
        save_file({key: torch.ones(2)}, tmp_path / fingerprint / f'{digest(key)}.safetensors')
    before = {path: path.read_bytes() for path in files(tmp_path)}
    again = opened(tmp_path)
    assert key not in again
    again.put(key, entry)
    assert not caplog.text and all(path.read_bytes() == content for path, content in before.items())
    assert {path.parts[len(tmp_path.parts)] for path in files(tmp_path) if path not in before} == {FORMAT}


def test_many_writers_of_one_key(tmp_path: Path) -> None:
    def write(rank: int) -> bool:
        store = opened(tmp_path)
        key, whole = store.key('row'), True
        for turn in range(30):
            store.put(key, {'x': torch.full((5000,), rank + turn)}, rank + turn)
            entry = store.get(key)
            whole &= entry is not None and bool((entry.tensors['x'] == entry.record).all())
            store.put_all({store.key(turn): {'x': torch.full((9,), turn)}})
        return whole

    assert run_ranks(write, 3) == [True] * 3
    store = opened(tmp_path)
    assert all(store.get(store.key(turn)).tensors['x'].tolist() == [turn] * 9 for turn in range(30))
    assert len(files(tmp_path)) == 1 + 30, "equal packs take each other's place, and no draft is left"


def test_kill_9_leaves_no_half_entry(tmp_path: Path) -> None:
    """A writer is killed before its file bears its name; then others are, at any moment."""
    store = opened(tmp_path)
    key = store.key('row')

    def end(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    for packed in (False, True):
        child = os.fork()
        if not child:
            os.replace = end
            put(opened(tmp_path), key, 1, packed)
            os._exit(1)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        assert key not in opened(tmp_path) and len(files(tmp_path)) == 1 + packed, 'a draft, which nothing reads'
    for number in range(6):
        child = os.fork()
        if not child:
            for turn in range(10_000):
                put(opened(tmp_path), key, turn, packed=False)
            os._exit(1)
        time.sleep(0.03 * number)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        entry = opened(tmp_path).get(key)
        assert entry is None or bool((entry.tensors['x'] == entry.record).all())
    put(opened(tmp_path), key, 3, packed=False)
    assert opened(tmp_path).get(key).record == 3


def put(store: TensorStore, key: str, number: int, packed: bool) -> None:
    tensors = {'x': torch.full((20_000,), number)}
    if packed:
        store.put_all({key: tensors})
    else:
        store.put(key, tensors, number)


def test_errors_name_the_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'file').touch()
    with pytest.raises(SettingsError, match=r'a_cfgs\.folder: .*file/kept cannot be written to'):
        opened(tmp_path / 'file' / 'kept')
    store = opened(tmp_path / 'kept')

    def full(path: Path, content: bytes, durable: bool) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(module, 'atomic_write_bytes', full)
    for write in (lambda: store.put('ab', {}), lambda: store.put_all({'ab': {}})):
        with pytest.raises(SettingsError, match=r'a_cfgs\.folder: .*No space left.*Free some space'):
            write()


def test_equal_contents_have_one_identity_and_others_have_others(tmp_path: Path) -> None:
    picture = tmp_path / 'a.png'
    picture.write_bytes(b'one')

    def contents() -> list[Any]:
        array = np.arange(6, dtype=np.float32).reshape(2, 3)
        return [
            None, True, 1, 1.0, '1', [1], {'1': 1}, {1: 1}, {1.0: 1}, {'1': 1, 1: 1}, b'1', 'a.png', str(picture),
            array, array.T, array.astype('>f4'), array.astype(np.int32), array.ravel(), array.view(np.int32),
            np.array(['a', 'b']), np.frombuffer(b'1', np.uint8),
            torch.arange(6.0), torch.arange(6.0).bfloat16(), torch.arange(6.0).view(2, 3),
            torch.empty(0), torch.tensor(1.0),
            Media('image', str(picture)), Media('video', str(picture)), Media('image', b'1'),
            Media('image', str(picture), {'rate': 1}), Media('image', 'data:image/png;base64,AA'),
        ]  # fmt: skip

    first, second = ([digest(item) for item in contents()] for _ in range(2))
    assert first == second and len(set(first)) == len(first)
    assert digest((1, 2)) == digest([1, 2]) and identity({'b': 1, 'a': 2}) == {'a': 2, 'b': 1}
    assert digest({'bytes': b'1', 'path': 'x'}) == digest({'path': 'x', 'bytes': b'1', 'more': 0})
    assert digest({1: 'a', 'b': {2: 3, 4: 5}}) == digest({'b': {4: 5, 2: 3}, 1: 'a'})
    stands = [identity(item) for item in [*contents(), {'bytes': b'1', 'path': 'x'}]]
    lists = [item for item in stands if isinstance(item, list) and item != [1]]
    again = [identity(item) for item in lists]
    others = [digest(item) for item in [*lists, *again, *map(identity, again)]]
    assert len({*first, *others}) == len(first) + len(others), 'what stands for a content is another content'
    assert [digest(Identified(identity(item))) for item in contents()] == first
    os.utime(picture, ns=(1, 1))
    changed = [digest(item) for item in contents()]
    assert [one != other for one, other in zip(first, changed, strict=True)].count(True) == 3, 'its three media'


@pytest.mark.parametrize(
    'content',
    [object(), {1, 2}, np.array([{}]), Media('image', 'https://nowhere.invalid/a.png'), Media('image', 'none')],
)
def test_what_has_no_content_of_its_own_has_no_identity(content: Any) -> None:
    with pytest.raises(UnidentifiedError, match='cannot be told|no file'):
        digest(['beside', content])
