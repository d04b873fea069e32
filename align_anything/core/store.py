"""Tensors on disk, found again by what they were made of: the content, what made it, and its settings.

Whatever is costly to make and always the same goes through here, encoded samples, features of frozen towers and scores
of a reference among them. Nothing in a store is needed: a folder may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from stat import S_ISDIR
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from align_anything.core.actions import Actions
from align_anything.core.errors import SettingsError, UnidentifiedError
from align_anything.core.files import atomic_write_bytes, writable_folder
from align_anything.core.logging import get_logger
from align_anything.core.types import Media

logger = get_logger(__name__)

T = TypeVar('T')

FORMAT = 'tensors-v2'
"""The folder that entries of this layout stand in, so that no other layout is ever read as this one."""
HEADER = 'entry'
BROKEN = (SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What reading a file raises that is no entry: its header, and what that tells, may be any JSON."""
UNCHECKED = '0' * 8


class Entry(NamedTuple):
    """What is stored under a key: tensors by name, and a record of anything that JSON holds."""

    tensors: dict[str, Tensor]
    record: Any


class TensorStore:
    """Entries in a folder, one file each or many in a pack. Ranks, data workers, runs and makers may share the folder.

    An entry is there whole or not at all, whenever its writer is killed. A file that is broken in any way, or is not
    what its name says, counts as missing, with a warning. Packs are known from when the store was opened or refreshed.
    """

    def __init__(self, folder: str | Path, maker: str, fingerprint: Any, setting: str) -> None:
        """Makes the folder.

        Args:
            folder: what the user named.
            maker: the kind of entries, which names their folder.
            fingerprint: everything that an entry hangs on beside its content: weights, settings, versions; what
                `identity` takes.
            setting: the setting that names the folder, for errors.

        Raises:
            SettingsError: the folder cannot be written to.
        """
        self.folder, self.setting = writable_folder(folder, setting), setting
        self._maker = digest(maker, fingerprint)
        self._entries = self.folder / FORMAT / f'{maker}-{self._maker[:16]}'
        self._packs: dict[Path, Any] = {}  # open files
        self._packed: dict[str, tuple[Path, list[str]]] = {}
        self.refresh()

    def key(self, *content: Any) -> str:
        """Returns the key of what this maker makes of `content`. Raises as `identity` does."""
        return digest(self._maker, *content)

    def get(self, key: str) -> Entry | None:
        """Returns what is stored under `key`, None when there is nothing that can be used. It may be written to."""
        if key not in self._packed:
            return self._read(self._path(key), lambda record, content: Entry(load(content), record))
        path, names = self._packed[key]
        return Entry({name: self._packs[path].get_tensor(f'{key}/{name}') for name in names}, None)

    def __contains__(self, key: str) -> bool:
        """Whether `get` finds an entry; it is read, so that a broken one is noticed while it can be made anew."""
        return key in self._packed or self._read(self._path(key), lambda *_: True) is not None

    def put(self, key: str, tensors: Mapping[str, Tensor], record: Any = None) -> None:
        """Stores tensors, copied to the CPU, and a record under `key`; what is there already is replaced.

        Raises SettingsError when the disk does not take them.
        """
        self._write(self._path(key), tensors, record)

    def put_all(self, entries: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Stores the tensors of many keys in one pack: making a file takes longer than writing a small entry.

        They are found once the store was refreshed. Raises as `put` does.
        """
        names = {key: list(entries[key]) for key in sorted(entries)}
        tensors = {f'{key}/{name}': entries[key][name] for key in names for name in names[key]}
        if names:
            # By its keys, so that equal packs take each other's place.
            self._write(self._entries / f'{digest(list(names))}.safetensors', tensors, names)

    def refresh(self) -> None:
        """Finds the packs that were written meanwhile, by other ranks too."""
        for path in sorted(set(self._entries.glob('*.safetensors')) - self._packs.keys()):
            found = self._read(path, partial(_opened_pack, path))
            if found is not None:
                self._packs[path], keys = found
                self._packed |= {key: (path, names) for key, names in keys.items()}

    def _read(self, path: Path, use: Callable[[Any, bytes], T]) -> T | None:
        """What `use` makes of the record and the content of a file, None when there is none or it is broken."""
        try:
            content = path.read_bytes()
            return use(_unpacked(path.stem, content), content)
        except FileNotFoundError:
            return None
        except BROKEN as error:
            logger.warning('%s cannot be read and is made anew: %r', path, error)
            return None

    def _write(self, path: Path, tensors: Mapping[str, Tensor], record: Any) -> None:
        try:
            # Not flushed, which takes longer than all else: what a power cut spoils has a wrong checksum.
            atomic_write_bytes(path, _packed(path.stem, tensors, record), durable=False)
        except OSError as error:
            raise SettingsError(
                [f'{self.setting}: {path} cannot be written: {error}. Free some space, or leave it out.']
            ) from error

    def _path(self, key: str) -> Path:
        return self._entries / key[:2] / f'{key}.safetensors'


class Identified(NamedTuple):
    """The identity of a content, to be used in its place: it is made once, however often it is part of another."""

    identity: Any


def digest(*values: Any) -> str:
    """Returns a hexadecimal digest of the identities of `values`. Raises as `identity` does."""
    return hashlib.blake2b(json.dumps(identity(values), sort_keys=True).encode(), digest_size=20).hexdigest()


def identity(value: Any, of_medium: bool = False) -> Any:
    """Returns JSON that is the same for equal contents only: of JSON, bytes, arrays, tensors and media in any nesting.

    `of_medium` takes texts for names of files, as the source of a `Media` does. A file counts by its path, size and
    time of change.

    Raises:
        UnidentifiedError: there is something else in it, such as a URL or an open image.
    """
    if isinstance(value, Media):
        return [value.kind, identity(value.source, True), identity(value.options)]
    if isinstance(value, Identified):
        return value.identity
    if isinstance(value, Actions):
        return ['actions', list(value.names), identity(value.values), value.dataset]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return _file(value) if of_medium and not value.startswith('data:') else value
    if isinstance(value, (bytes, bytearray)):
        return ['bytes', _hash(value)]
    if isinstance(value, Tensor):
        content = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        return [str(value.dtype), list(value.shape), _hash(content)]
    if isinstance(value, Mapping) and isinstance(value.get('bytes'), (bytes, bytearray)):
        # Beside bytes, path is only the name the file once had.
        return [identity(value['bytes']), value.get('path')]
    if isinstance(value, Mapping):
        # What stands beside codes is the name of their codec, and no file.
        of_medium = of_medium and 'codes' not in value
        items = [[identity(name), identity(item, of_medium)] for name, item in value.items()]
        if all(isinstance(name, str) for name in value):
            return dict(items)
        # JSON would write these names as texts.
        return ['mapping', sorted(items, key=json.dumps)]
    if isinstance(value, (list, tuple)):
        # Marked, because what stands for bytes, arrays, media and mappings is a list too.
        return ['list', *(identity(item, of_medium) for item in value)]
    return _array(value)


def _array(value: Any) -> Any:
    """The identity of a numpy array, or of anything else that lends its memory."""
    try:
        view = memoryview(value)
        if 'O' not in view.format:
            return [view.format, list(view.shape), _hash(view.tobytes())]
    except (TypeError, ValueError, BufferError):
        pass
    raise UnidentifiedError(f'a {type(value).__name__} cannot be told from others by its content')


def _file(path: str) -> Any:
    """What tells a file, or a folder of images, from what stands there later."""
    try:
        status = os.stat(path)
        inside = [os.path.join(path, name) for name in sorted(os.listdir(path))] if S_ISDIR(status.st_mode) else []
        states = [(name, os.stat(name)) for name in inside]
    except (OSError, ValueError) as error:
        raise UnidentifiedError(f"'{path}' is no file that can be looked at: {error}") from error
    files = [[name, state.st_size, state.st_mtime_ns] for name, state in states]
    return [path, os.path.realpath(path), status.st_size, status.st_mtime_ns, files]


def _hash(content: Any) -> str:
    return hashlib.blake2b(content, digest_size=20).hexdigest()


def _opened_pack(path: Path, names: Mapping[str, list[str]], _: bytes) -> tuple[Any, Mapping[str, list[str]]]:
    """Returns an open pack and the names of the tensors of each key in it. Raises ValueError when others are there."""
    pack = safe_open(path, 'pt')
    if {f'{key}/{name}' for key, of_key in names.items() for name in of_key} != set(pack.keys()):
        raise ValueError('its tensors are not those that it tells of')
    return pack, names


def _packed(key: str, tensors: Mapping[str, Tensor], record: Any) -> bytes:
    # A copy, because several tensors may be slices of one, which safetensors refuses.
    own = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    # One string, because the order of several is not always the same.
    blank = save(own, {HEADER: UNCHECKED + json.dumps([key, record])})
    before = f'"{HEADER}":"'.encode()
    return blank.replace(before + UNCHECKED.encode(), before + _opened(blank)[1].encode(), 1)


def _unpacked(key: str, content: bytes) -> Any:
    """Returns the record of a file that is the entry of `key`, whose tensors then are as they were written."""
    told, checksum = _opened(content)
    if not told.startswith(checksum):
        raise ValueError('its checksum is wrong')
    stored, record = json.loads(told[len(UNCHECKED) :])
    if stored != key:
        raise ValueError(f'it is the entry of {stored}')
    return record


def _opened(content: bytes) -> tuple[str, str]:
    """Returns what the header of a file tells beside its tensors, and the checksum that this should begin with."""
    # A safetensors file: the length of the header in eight bytes, the header in JSON, the tensors.
    end = 8 + int.from_bytes(content[:8], 'little')
    header = json.loads(content[8:end])
    told = header.pop('__metadata__')[HEADER]
    known = json.dumps([told[len(UNCHECKED) :], header], sort_keys=True).encode()
    # Of all bytes at once: a pack of many tensors is checked without making them.
    return told, f'{zlib.crc32(memoryview(content)[end:], zlib.crc32(known)):08x}'
