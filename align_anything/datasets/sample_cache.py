"""Processed samples kept on disk, so that a later epoch, another rank or another run neither decodes nor encodes them.

A sample is what the encoder makes of a row's formatted conversations, so these are what its key tells of a row, each
medium by its file (path, size, time of change) or its content, with the options of its decoding. A template and its
arguments matter by what they write, and a template that was edited misses wherever it writes something else. With
that goes a fingerprint of everything that is the same for all rows of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor

from align_anything.core.errors import SampleError, SettingsError, UnidentifiedError
from align_anything.core.logging import get_logger
from align_anything.core.store import TensorStore
from align_anything.core.types import Conversation, Example, Piece
from align_anything.datasets.code import code_digest

logger = get_logger(__name__)

LIBRARIES = ('av', 'numpy', 'pillow', 'soundfile', 'soxr', 'tokenizers', 'torch', 'torchvision', 'transformers')
"""What decodes and encodes; another version of one of them may do so otherwise."""
CODE = 'core', 'datasets', 'models'
"""Folders of this package that a sample passes through."""


class SampleCache:
    """Examples in a `TensorStore`.

    Kept are Examples, and reasons why the encoder leaves a row out. Not kept are rows whose media cannot be told
    apart by file or content (URLs, objects in memory other than bytes and arrays), Examples in whose `meta` the encoder
    puts what neither JSON nor tensors hold, and failures of other code, which may pass: memory, a disk.

    When the disk takes no more, this process says so once and goes on without keeping.
    """

    def __init__(self, folder: str | Path, task: Any, encoding: str) -> None:
        """Makes the folder.

        Args:
            task: the `Task` whose samples are kept, a dataclass; its functions are told apart by `encoding`.
            encoding: what everything hangs on that is neither the row nor this package: tokenizer, processor, lengths.

        Raises:
            SettingsError: the folder cannot be written to.
        """
        values = {field.name: getattr(task, field.name) for field in fields(task)}
        asked = {name: value for name, value in values.items() if not callable(value)}
        fingerprint = [code_digest(LIBRARIES, CODE), encoding, type(task).__qualname__, asked]
        self._store = TensorStore(folder, 'samples', fingerprint, 'data_cfgs.sample_cache_dir')
        self._keeps = True

    def example(self, conversations: Sequence[Conversation], make: Callable[[], Example]) -> Example:
        """Returns the Example of conversations that are not decoded yet: the one kept, else that of `make`.

        Raises SampleError as `make` does, or as it did.
        """
        try:
            key = self._store.key(conversations)
        except UnidentifiedError:
            return make()
        entry = self._store.get(key)
        if entry is not None:
            kept = _together(entry.record, entry.tensors)
            if isinstance(kept, Example):
                return kept
            raise SampleError(kept)
        try:
            made = make()
        except SampleError as error:
            if error.__cause__ is None:
                self._keep(key, str(error))
            raise
        self._keep(key, made)
        return made

    def _keep(self, key: str, outcome: Example | str) -> None:
        if not self._keeps:
            return
        tensors: dict[str, Tensor] = {}
        try:
            record = _apart(outcome, tensors)
            self._store.put(key, tensors, record)
        except UnidentifiedError:
            return
        except SettingsError as error:
            self._keeps = False
            logger.warning('%s Until then no more samples are kept by this process.', error)


def _apart(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Returns a sample as JSON, `[kind, content]` at every level, and puts its tensors into `tensors`."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value
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
    raise UnidentifiedError(f'neither JSON nor tensors hold a {type(value).__name__}')


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
