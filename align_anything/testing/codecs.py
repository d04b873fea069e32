"""Tiny codecs: code books learned by k-means from a handful of media, and untrained networks of the real classes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from align_anything.core.types import Audio
from align_anything.models.codecs import patch_codebook, spectrum_codebook
from align_anything.models.codecs.base import CONFIG


def make_patch_codebook(
    out: str | Path, images: Sequence[Image.Image], *, size: tuple[int, int], patch: int, entries: int, seed: int = 0
) -> Path:
    """Writes a `patch_codebook` learned from `images` into `out`, and returns that folder.

    `size` is the height and width in pixels that pictures are scaled to. Needs scikit-learn.
    """
    patches = [patch_codebook.patches_of(image, size, patch).flatten(0, 1) for image in images]
    book, _ = _learned(torch.cat(patches), entries, seed)
    config = {'model_type': 'patch_codebook', 'codebook_size': entries, 'patch_size': patch, 'size': list(size)}
    return _write(Path(out), config, patch_codebook.WEIGHTS, {patch_codebook.BOOK: book})


def make_spectrum_codebook(
    out: str | Path,
    sounds: Sequence[Audio],
    *,
    entries: int,
    frame: int = 200,
    bins: int = 40,
    books: int = 1,
    seed: int = 0,
) -> Path:
    """Writes a `spectrum_codebook` learned from `sounds` of one rate into `out`, and returns that folder.

    `frame` is the length of a frame in samples, `bins` how many frequencies from 0 are looked at, each `rate / frame`
    Hz wide; each of the `books` is learned from what the ones before it left over. Needs scikit-learn.
    """
    rest = torch.cat([spectrum_codebook.spectra_of(sound.samples, frame, bins) for sound in sounds])
    learned = []
    for _ in range(books):
        book, codes = _learned(rest, entries, seed)
        learned.append(book)
        rest = rest - book[codes]
    config = {
        'model_type': 'spectrum_codebook',
        'codebook_size': entries,
        'num_quantizers': books,
        'frame_size': frame,
        'bins': bins,
        'sampling_rate': sounds[0].rate,
    }
    return _write(Path(out), config, spectrum_codebook.WEIGHTS, {spectrum_codebook.BOOK: torch.stack(learned)})


def _learned(points: Tensor, entries: int, seed: int) -> tuple[Tensor, Tensor]:
    """The centres of `points` `(points, features)`, float32, and the nearest one of each point."""
    from sklearn.cluster import KMeans

    means = KMeans(entries, n_init=1, random_state=seed).fit(points.numpy())
    return torch.from_numpy(means.cluster_centers_).float(), torch.from_numpy(means.labels_).long()


def _write(folder: Path, config: dict[str, Any], weights: str, tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config, indent=2), encoding='utf-8')
    save_file(tensors, folder / weights)
    return folder
