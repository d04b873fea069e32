"""What an encoder makes of media: one vector each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from align_anything.core.errors import DataError, ModelError
from align_anything.core.types import Media, MediaKind
from align_anything.datasets.media import decode
from align_anything.rewards.frozen import (
    PICTURES_AND_TEXT,
    SOUNDS_AND_TEXT,
    Frozen,
    device_of,
    frozen,
    pictures_embedded,
    sounds_embedded,
)

SUFFIXES: dict[MediaKind, tuple[str, ...]] = {
    'image': ('.png', '.jpg', '.jpeg', '.webp', '.bmp'),
    'audio': ('.wav', '.flac', '.mp3', '.ogg'),
}


class Encoder(NamedTuple):
    """What makes vectors of media.

    Attributes:
        kind: of the media that it reads.
        encode: gives `(media, width)` float32 of decoded media.
    """

    kind: MediaKind
    encode: Any


@cache
def open_encoder(name: str, device: str | None, batch_size: int) -> Encoder:
    """Opens a checkpoint that encodes pictures or audio clips.

    Of CLIP, SigLIP, CLAP and their like it is what they compare with texts, of length 1; of any other model of
    transformers for pictures, such as DINOv2 or ResNet, its pooled output, or the mean of its last states.

    Raises ModelError for a checkpoint that reads neither.
    """
    from align_anything.models.checkpoint import read_config

    model_type = read_config(name).model_type
    if model_type in PICTURES_AND_TEXT.types:
        judge = frozen(name, PICTURES_AND_TEXT, device)
        return Encoder('image', lambda media: pictures_embedded(judge, media, batch_size).numpy())
    if model_type in SOUNDS_AND_TEXT.types:
        judge = frozen(name, SOUNDS_AND_TEXT, device)
        return Encoder('audio', lambda media: sounds_embedded(judge, media, batch_size).numpy())
    model = _vision_model(name, device)
    return Encoder('image', lambda media: _pooled(model, media, batch_size))


def features_of(media: Iterator[Any], encoder: Encoder, at_once: int) -> np.ndarray:
    """Returns the vectors of media, `(media, width)` float64, which are decoded some at a time."""
    rows, waiting = [], []
    for item in media:
        waiting.append(item)
        if len(waiting) == at_once:
            rows.append(encoder.encode(waiting))
            waiting = []
    if waiting:
        rows.append(encoder.encode(waiting))
    return np.concatenate(rows).astype(np.float64) if rows else np.empty((0, 0))


@cache
def features_of_folder(folder: str, encoder: Encoder, at_once: int) -> np.ndarray:
    """Returns the vectors of all files of the encoder's kind in a folder and those below it, in order of their names.

    Raises DataError for a folder without any, and SampleError for a file that cannot be read.
    """
    files = sorted(path for path in Path(folder).rglob('*') if path.suffix.lower() in SUFFIXES[encoder.kind])
    if not files:
        raise DataError(
            f'{folder} has no {encoder.kind} file ({", ".join(SUFFIXES[encoder.kind])}) to compare with: name the '
            'folder of the reference set as `reference`.'
        )
    return features_of((decode(Media(encoder.kind, str(file))) for file in files), encoder, at_once)


def _vision_model(name: str, device: str | None) -> Frozen:
    from transformers import AutoImageProcessor, AutoModel

    try:
        processor, model = AutoImageProcessor.from_pretrained(name), AutoModel.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f'{name} encodes neither pictures nor audio: {error}') from error
    return Frozen(model.float().to(device_of(device)).eval().requires_grad_(False), processor)


def _pooled(judge: Frozen, pictures: Sequence[Any], batch_size: int) -> np.ndarray:
    rows = []
    for start in range(0, len(pictures), batch_size):
        inputs = judge.processor(images=list(pictures[start : start + batch_size]), return_tensors='pt')
        with torch.inference_mode():
            outputs = judge.model(**inputs.to(judge.model.device))
        pooled = outputs.get('pooler_output')
        rows.append((outputs.last_hidden_state.mean(1) if pooled is None else pooled.flatten(1)).float().cpu())
    return torch.cat(rows).numpy()
