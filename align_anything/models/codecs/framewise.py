"""Videos frame by frame, each frame as a codec of pictures encodes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from align_anything.core.errors import ModelError
from align_anything.core.files import atomic_write_json, read_json
from align_anything.core.store import digest
from align_anything.core.types import Video
from align_anything.models.codecs.base import (
    CONFIG,
    Codec,
    CodecRules,
    codec_rules,
    register_codec,
)

PICTURE = 'pictures'
EARLY = 1e-3
"""Seconds by which a frame may come late: timestamps are rounded."""


@dataclass(frozen=True)
class FramewiseRules(CodecRules):
    """Rules of videos at `fps` frames per second, whose frames `picture` encodes."""

    picture: CodecRules | None = None
    fps: float = 1.0

    def grid(self, medium: Video) -> tuple[int, ...]:
        """Returns `(frames, height, width)`, the frames at the rate of the codec."""
        return (len(self.shown(medium)), *self.picture.grid(Image.fromarray(medium.frames[0])))

    def shown(self, medium: Video) -> np.ndarray:
        """Returns the number of the frame that a video shows at each tick of the codec, from its first frame on."""
        times = np.asarray(medium.timestamps)
        ticks = int((times[-1] - times[0] + EARLY) * self.fps) + 1
        return np.searchsorted(times, times[0] + np.arange(ticks) / self.fps + EARLY, side='right') - 1

    def copy_to(self, out: Path) -> None:
        """Writes it into the new folder `out`, and the codec of its pictures into that."""
        out.mkdir(parents=True)
        self.picture.copy_to(out / PICTURE)
        atomic_write_json(out / CONFIG, {**read_json(self.folder / CONFIG), 'codec': PICTURE})

    def open(self, device: torch.device | str = 'cpu') -> Codec:
        """Opens the codec of the pictures."""
        return FramewiseCodec(self, self.picture.open(device))


class FramewiseCodec:
    """The codec: one of pictures, asked once for each frame that differs."""

    def __init__(self, rules: FramewiseRules, picture: Codec) -> None:
        self.rules, self.picture = rules, picture

    def encode(self, media: Sequence[Video]) -> list[Tensor]:
        """Returns the codes of videos, each `(books, frames, height, width)` int64."""
        found = []
        for video in media:
            shown = self.rules.shown(video)
            numbers, at = np.unique(shown, return_inverse=True)
            codes = self.picture.encode([Image.fromarray(video.frames[number]) for number in numbers])
            found.append(torch.stack(codes, 1)[:, torch.from_numpy(at)])
        return found

    def decode(self, codes: Tensor) -> Video:
        """Returns the video of codes `(books, frames, height, width)`, without sound."""
        frames = np.stack([np.asarray(self.picture.decode(frame)) for frame in codes.unbind(1)])
        return Video(frames, np.arange(len(frames)) / self.rules.fps, self.rules.fps)


@register_codec('framewise')
def rules(folder: Path, config: dict[str, Any]) -> FramewiseRules:
    """Returns the rules of a codec of videos; `codec` names the folder of that of the pictures, from this one."""
    picture, fps = codec_rules(folder / config['codec']), config['fps']
    if picture.kind != 'image':
        raise ModelError(f'{folder / CONFIG}: {picture.folder} encodes {picture.kind}, but frames are pictures.')
    if type(fps) not in (int, float) or fps <= 0:
        raise ModelError(f'{folder / CONFIG}: fps {fps} is not a number of frames per second.')
    # Wherever that of the pictures lies.
    fingerprint = digest('framewise', float(fps), picture.fingerprint)
    return FramewiseRules(
        folder, 'video', picture.books, fingerprint, decodes=picture.decodes, picture=picture, fps=float(fps)
    )
