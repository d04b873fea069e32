"""Processed samples kept on disk, so that a later epoch, another rank or another run neither decodes nor encodes them.

A sample is what the encoder makes of a row's formatted conversations, so these are what its key tells of a row, each
medium by its file (path, size, time of change) or its content, with the options of its decoding. A template and its
arguments matter by what they write, and a template that was edited misses wherever it writes something else. With
that goes a fingerprint of everything that is the same for all rows of a run.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from stat import S_ISDIR
from typing import Any

import numpy
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from align_anything.core.errors import SampleError
from align_anything.core.files import atomic_write_bytes, writable_folder
from align_anything.core.logging import get_logger
from align_anything.core.types import Conversation, Example, Media, Piece

logger = get_logger(__name__)

LIBRARIES = 'av numpy pillow soundfile soxr tokenizers torch torchvision transformers'.split()
"""What decodes and encodes; another version of one of them may do so otherwise."""
CODE = 'core', 'datasets', 'models'
"""Folders of this package that a sample passes through."""
ENTRY = 'sample'


class SampleCache:
    """Examples in a folder, one safetensors file each. Ranks, workers and runs may share it, and it may be deleted.

    Kept are Examples, and reasons why the encoder leaves a row out. Not kept are rows whose media cannot be told
    apart by file or content (URLs, objects in memory other than bytes and arrays), Examples in whose `meta` the encoder
    puts what neither JSON nor tensors hold, and failures of other code, which may pass: memory, a disk.

    A file that is broken in any way is made anew. When the disk takes no more, this process says so once and goes on
    without keeping.
    """

    def __init__(self, folder: str | Path, task: Any, encoding: str) -> None:
        """Makes the folder.

        Args:
            task: the `Task` whose samples are kept, a dataclass; its functions are told apart by `encoding`.
            encoding: what everything hangs on that is neither the row nor this package: tokenizer, processor, lengths.

        Raises:
            SettingsError: the folder cannot be written to.
        """
        self.folder = writable_folder(folder, 'data_cfgs.sample_cache_dir')
        values = {field.name: getattr(task, field.name) for field in fields(task)}
        asked = {name: value for name, value in values.items() if not callable(value)}
        self._fingerprint = _digest([_code(), encoding, type(task).__qualname__, _identity(asked)])
        self._keeps = True

    def example(self, conversations: Sequence[Conversation], make: Callable[[], Example]) -> Example:
        """Returns the Example of conversations that are not decoded yet: the one kept, else that of `make`.

        Raises SampleError as `make` does, or as it did.
        """
        try:
            key = _digest([self._fingerprint, _identity(conversations)])
        except _Untold:
            return make()
        path = self.folder / key[:2] / f'{key}.safetensors'
        kept = _read(path)
        if isinstance(kept, Example):
            return kept
        if kept is not None:
            raise SampleError(kept)
        try:
            made = make()
        except SampleError as error:
            if error.__cause__ is None:
                self._write(path, str(error))
            raise
        self._write(path, made)
        return made

    def _write(self, path: Path, outcome: Example | str) -> None:
        if not self._keeps:
            return
        try:
            atomic_write_bytes(path, _packed(outcome))
        except _Untold:
            return
        except OSError as error:
            self._keeps = False
            logger.warning(
                'data_cfgs.sample_cache_dir: %s cannot be written (%s), so no more samples are kept by this process. '
                'Make room, or leave it out.',
                path,
                error,
            )


class _Untold(Exception):
    """Something in a row, or in its sample, that cannot be told by JSON and tensors."""


def _identity(value: Any, of_medium: bool = False) -> Any:
    """Returns `value` with all content in it told by JSON; `of_medium` takes texts for what holds a medium."""
    if isinstance(value, Media):
        return [value.kind, _identity(value.source, True), _identity(value.options)]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return _file(value) if of_medium and not value.startswith('data:') else value
    if isinstance(value, (bytes, bytearray)):
        return ['bytes', hashlib.blake2b(value).hexdigest()]
    if isinstance(value, numpy.ndarray) and not value.dtype.hasobject:
        return [value.dtype.str, value.shape, hashlib.blake2b(numpy.ascontiguousarray(value)).hexdigest()]
    if isinstance(value, Mapping) and isinstance(value.get('bytes'), (bytes, bytearray)):
        # Beside bytes, path is only the name the file once had.
        return [_identity(value['bytes']), value.get('path')]
    if isinstance(value, Mapping):
        return {str(name): _identity(item, of_medium) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_identity(item, of_medium) for item in value]
    raise _Untold


def _file(path: str) -> Any:
    """Returns what tells a file, or a folder of pictures, from what stands there later."""
    try:
        status = os.stat(path)
        inside = [os.path.join(path, name) for name in sorted(os.listdir(path))] if S_ISDIR(status.st_mode) else []
        states = [(name, os.stat(name)) for name in inside]
    except (OSError, ValueError) as error:
        raise _Untold from error
    files = [(name, state.st_size, state.st_mtime_ns) for name, state in states]
    return [path, os.path.realpath(path), status.st_size, status.st_mtime_ns, files]


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=20).hexdigest()


@cache
def _code() -> str:
    """Returns a digest of the sources of this package and the versions of others that samples pass through."""
    package = Path(__file__).parents[1]
    digest = hashlib.blake2b(json.dumps([_version(name) for name in LIBRARIES]).encode(), digest_size=20)
    for file in sorted(file for folder in CODE for file in (package / folder).rglob('*.py')):
        digest.update(f'{file.relative_to(package)}\n'.encode() + file.read_bytes())
    return digest.hexdigest()


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return 'none'


def _read(path: Path) -> Example | str | None:
    """Returns the Example or the reason in a file, None when there is none or it is broken."""
    try:
        return _unpacked(path.read_bytes())
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        logger.warning('%s cannot be read and is made anew: %r', path, error)
        return None


def _packed(outcome: Example | str) -> bytes:
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_apart(outcome, tensors))
    # One entry, because the order of several is not always the same.
    return save(tensors, {ENTRY: f'{_checksum(text, tensors)} {text}'})


def _unpacked(content: bytes) -> Example | str:
    tensors = load(content)
    # The header of a safetensors file: its length in eight bytes, then JSON.
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], 'little')])
    checksum, _, text = header['__metadata__'][ENTRY].partition(' ')
    if _checksum(text, tensors) != checksum:
        raise ValueError('its checksum is wrong')
    return _together(json.loads(text), tensors)


def _apart(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Returns a sample as JSON, `[kind, content]` at every level, and puts its tensors into `tensors`."""
    if isinstance(value, Tensor):
        # A clone, because pieces may be slices of one tensor, which safetensors refuses.
        name = str(len(tensors))
        tensors[name] = value.clone(memory_format=torch.contiguous_format)
        return ['tensor', name]
    if isinstance(value, (Example, Piece)):
        parts = {field.name: getattr(value, field.name) for field in fields(value)}
        return [type(value).__name__, _apart(parts, tensors)]
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return ['dict', {name: _apart(item, tensors) for name, item in value.items()}]
    if isinstance(value, list):
        return ['list', [_apart(item, tensors) for item in value]]
    if value is None or isinstance(value, (bool, int, float, str)):
        return ['plain', value]
    raise _Untold


def _together(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Puts together what `_apart` took apart."""
    kind, content = value
    if kind == 'tensor':
        return tensors[content]
    if kind == 'dict':
        return {name: _together(item, tensors) for name, item in content.items()}
    if kind == 'list':
        return [_together(item, tensors) for item in content]
    if kind == 'plain':
        return content
    return {'Example': Example, 'Piece': Piece}[kind](**_together(content, tensors))


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    total = zlib.crc32(text.encode())
    for name, tensor in sorted(tensors.items()):
        total = zlib.crc32(f'{name} {tensor.dtype} {tuple(tensor.shape)}'.encode(), total)
        total = zlib.crc32(tensor.flatten().view(torch.uint8).numpy(), total)
    return str(total)
