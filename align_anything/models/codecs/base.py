"""What a codec is, in two halves: rules that data workers know, and the frozen network that only a device needs."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from align_anything.core.errors import ModelError, SampleError
from align_anything.core.files import read_json
from align_anything.core.registry import Registry
from align_anything.core.types import Array, Audio, MediaKind
from align_anything.models import codecs

CONFIG = 'config.json'
FILES = '.safetensors', '.bin', '.json'


@dataclass(frozen=True)
class CodecRules:
    """What is known of a codec without its weights; picklable.

    Attributes:
        folder: where its configuration and weights lie.
        kind: what it encodes.
        books: entries of each of its code books.
        fingerprint: tells the codec, weights included, from others.
        rate: samples per second of the audio that it takes and gives; None for other kinds.
        decodes: whether it can make media of codes.
        prepared: whether its codes are made before training; else they are arithmetic, made where a row is encoded.
    """

    folder: Path
    kind: MediaKind
    books: tuple[int, ...]
    fingerprint: str
    rate: int | None = None
    decodes: bool = True
    prepared: ClassVar[bool] = True

    def grid(self, medium: Any) -> tuple[int, ...]:
        """Returns the shape of the codes of a decoded medium, without the dimension of the books.

        `(height, width)` of an image, `(frames,)` of audio, `(frames, height, width)` of a video. Raises SampleError
        for a medium that the codec cannot take.
        """
        raise NotImplementedError

    def copy_to(self, out: Path) -> None:
        """Writes the codec, and nothing that it does without, into the new folder `out`."""
        shutil.copytree(self.folder, out)

    def complete(self, checkpoint: Path) -> None:
        """Writes what it needs beside the weights of the saved model that it lies in, for most codecs nothing."""

    def open(self, device: torch.device | str = 'cpu') -> Codec:
        """Loads the network: frozen, in evaluation mode, in float32. Raises ModelError where it cannot."""
        raise NotImplementedError


class Codec(Protocol):
    """The network of a codec. It belongs to no engine and no optimizer, and never changes."""

    rules: CodecRules

    def encode(self, media: Sequence[Any]) -> list[Tensor]:
        """Returns the codes of decoded media, each `(books, *grid)` int64 on the CPU, one by one or in batches.

        The codes of a medium hang on nothing beside it. Raises SampleError as `grid` does.
        """
        ...

    def decode(self, codes: Tensor) -> Any:
        """Returns the medium of codes `(books, *grid)`: an RGB PIL image, an `Audio` or a `Video`.

        Raises ModelError where `rules.decodes` is false.
        """
        ...


Maker = Callable[[Path, dict[str, Any]], CodecRules]
"""`(folder, its config.json) -> CodecRules`."""

_CODECS: Registry[Maker] = Registry(
    'codec', ModelError, package=codecs.__name__, group='align_anything.codecs', wanted='a function', is_one=callable
)


def register_codec(*model_types: str) -> Callable[[Maker], Maker]:
    """Decorator that files what reads the rules of codecs whose `config.json` has one of these `model_type`s."""

    def decorate(maker: Maker) -> Maker:
        for name in model_types:
            _CODECS.register(name)(maker)
        return maker

    return decorate


def codec_types() -> list[str]:
    """Returns the types of codecs that are known, sorted."""
    return _CODECS.names()


def codec_rules(folder: str | Path) -> CodecRules:
    """Returns the rules of the codec in a folder. Raises ModelError when there is none that is known."""
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise ModelError(f'{folder} holds no codec: it has no {CONFIG}. Name the folder of a codec.')
    config = read_json(folder / CONFIG)
    name = config.get('model_type') or config.get('_class_name')
    if name is None:
        raise ModelError(f'{folder / CONFIG} has no model_type, so the codec is unknown.')
    try:
        return _CODECS.get(name)(folder, config)
    except KeyError as error:
        raise ModelError(f"{folder / CONFIG} of a '{name}' codec lacks the key {error}.") from error


def codec_fingerprint(folder: Path, *more: str) -> str:
    """Returns a digest of the files of a codec, read whole: the same codec in two folders makes the same codes.

    `more` is what else the codec is made of.
    """
    digest = hashlib.blake2b(digest_size=20)
    for path in sorted(path for path in folder.iterdir() if path.suffix in FILES):
        digest.update(f'{path.name} {path.stat().st_size}\n'.encode())
        with path.open('rb') as file:
            for block in iter(lambda: file.read(2**24), b''):
                digest.update(block)
    for each in more:
        digest.update(each.encode())
    return digest.hexdigest()


def samples_of(medium: Audio, rules: CodecRules) -> Array:
    """Returns the samples of a sound, float32. Raises SampleError for another rate than the codec's, or for none."""
    if medium.rate != rules.rate:
        raise SampleError(f'a sound has {medium.rate} samples per second, but {rules.folder} encodes {rules.rate}')
    if not len(medium.samples):
        raise SampleError('a sound has no samples')
    return medium.samples
