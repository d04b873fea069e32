"""What a reference model thinks of responses, kept on disk for all epochs, restarts and runs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from align_anything.core.errors import DataError
from align_anything.core.files import atomic_write_bytes, writable_folder
from align_anything.core.logging import get_logger
from align_anything.core.types import Example, Piece, Skipped
from align_anything.datasets.dataset import Part

logger = get_logger(__name__)

KEYS = 'reference_keys'
"""Entry of an Example's meta: the keys of its responses, and of its unmatched one at the end when it has one."""


class ReferenceScores:
    """Log-probabilities of trained tokens, by what the model reads: prompt, response, media, their weights.

    Each rank writes files of its own, whole or not at all; runs may share the folder, and it may be deleted. A broken
    file counts as missing.
    """

    def __init__(self, folder: str | Path, fingerprint: str) -> None:
        """Opens the scores of the reference that `fingerprint` tells from others.

        Raises:
            SettingsError: the folder cannot be written to.
        """
        self.folder = writable_folder(Path(folder) / fingerprint, 'train_cfgs.reference_cache_dir')
        self._files: dict[str, Path] = {}
        self._opened: dict[Path, Any] = {}
        self.look()

    def look(self) -> None:
        """Finds what was written meanwhile, by other ranks too."""
        for path in sorted(self.folder.glob('*.safetensors')):
            try:
                with safe_open(path, 'pt') as file:
                    self._files |= dict.fromkeys(file.keys(), path)
            except (SafetensorError, OSError) as error:
                logger.warning('%s cannot be read, its scores are made anew: %r', path, error)

    def __contains__(self, key: str) -> bool:
        return key in self._files

    def get(self, key: str) -> Tensor:
        """Returns the log-probabilities of a response's trained tokens, `(units,)` float32."""
        path = self._files[key]
        if path not in self._opened:
            self._opened[path] = safe_open(path, 'pt')
        return self._opened[path].get_tensor(key)

    def add(self, scores: Mapping[str, Tensor]) -> None:
        """Writes a file of scores; its name is that of its keys, so that equal ones take each other's place."""
        if scores:
            name = hashlib.blake2b('\n'.join(sorted(scores)).encode(), digest_size=20).hexdigest()
            atomic_write_bytes(self.folder / f'{name}.safetensors', save({key: scores[key] for key in sorted(scores)}))


def reference_keys(example: Example) -> list[str]:
    """Returns a key for each response of `example`, and for the unmatched one if it has one."""
    prompt = hashlib.blake2b(digest_size=20)
    _tell(prompt, example.prompt)
    others = [] if example.unmatched is None else [example.unmatched]
    keys = []
    for response in [*example.responses, *others]:
        digest = prompt.copy()
        _tell(digest, response)
        keys.append(digest.hexdigest())
    return keys


def _tell(digest: Any, piece: Piece) -> None:
    named = {'ids': piece.ids, 'weights': piece.weights, **piece.token_tensors, **piece.media}
    for name, tensor in sorted(named.items()):
        digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)};'.encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())


class Indexed(Protocol):
    """A dataset of Examples, such as `ExampleDataset`."""

    parts: list[Part]

    def __getitem__(self, index: Any) -> Example | Skipped: ...


class Referenced:
    """A dataset whose Examples bear the keys of their responses, and the reference's scores where there are any.

    With `complete`, an Example without scores is an error: its row is not the one that was scored before training.
    """

    def __init__(self, dataset: Indexed, scores: ReferenceScores, complete: bool) -> None:
        self._dataset, self._scores, self._complete = dataset, scores, complete
        self.parts = dataset.parts

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: Any) -> Example | Skipped:
        example = self._dataset[index]
        if isinstance(example, Skipped):
            return example
        keys = reference_keys(example)
        example.meta[KEYS] = keys
        others = [] if example.unmatched is None else [example.unmatched]
        for key, piece in zip(keys, [*example.responses, *others], strict=True):
            if key in self._scores:
                piece.per_unit['reference'] = self._scores.get(key)
            elif self._complete:
                raise DataError(
                    f'{example.source}: this row, or a file that it names, has changed since the reference scored it. '
                    'Start the run again.'
                )
        return example
