"""Decoded media as HTML that needs no other file."""

from __future__ import annotations

import base64
import io
import wave
from collections.abc import Callable
from html import escape
from typing import Any

import numpy as np

from align_anything.core.types import Audio, MediaKind, Video

SIDE = 320
FRAME_SIDE = 160
FRAMES = 8
SECONDS = 10
FULL_SCALE = 32767


def show_medium(kind: MediaKind, item: Any) -> str:
    """Returns the medium as the model gets it, made small; a kind without a picture of its own is named."""
    show = SHOWN_AS.get(kind)
    return f'<span class="medium">{escape(kind)}</span>' if show is None else show(item)


def _image(item: Any) -> str:
    return _figure(_picture(item, SIDE), f'image {item.width} × {item.height}')


def _video(clip: Video) -> str:
    from PIL import Image

    count = len(clip.frames)
    chosen = sorted({round(n * (count - 1) / max(FRAMES - 1, 1)) for n in range(min(FRAMES, count))})
    pictures = ''.join(_picture(Image.fromarray(clip.frames[n]), FRAME_SIDE) for n in chosen)
    height, width = clip.frames.shape[1:3]
    shown = '' if len(chosen) == count else f', {len(chosen)} of them shown'
    caption = f'video {width} × {height}, {count} frames at {_seconds(clip.timestamps)} s{shown}'
    return _figure(pictures, caption) + ('' if clip.audio is None else _audio(clip.audio))


def _audio(sound: Audio) -> str:
    samples = np.clip(sound.samples[: SECONDS * sound.rate], -1, 1)
    file = io.BytesIO()
    with wave.open(file, 'wb') as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(sound.rate)
        writer.writeframes((samples * FULL_SCALE).astype('<i2').tobytes())
    length = len(sound.samples) / sound.rate
    cut = f', the first {SECONDS} of them here' if length > SECONDS else ''
    source = _data_uri('audio/wav', file.getvalue())
    return _figure(f'<audio controls src="{source}"></audio>', f'audio {length:.1f} s at {sound.rate} Hz{cut}')


SHOWN_AS: dict[MediaKind, Callable[[Any], str]] = {'image': _image, 'video': _video, 'audio': _audio}


def _picture(image: Any, side: int) -> str:
    small = image.convert('RGB')
    small.thumbnail((side, side))
    file = io.BytesIO()
    small.save(file, 'JPEG', quality=80)
    return f'<img alt="" src="{_data_uri("image/jpeg", file.getvalue())}">'


def _figure(content: str, caption: str) -> str:
    return f'<figure>{content}<figcaption>{escape(caption)}</figcaption></figure>'


def _data_uri(kind: str, content: bytes) -> str:
    return f'data:{kind};base64,{base64.b64encode(content).decode()}'


def _seconds(times: Any) -> str:
    if len(times) > FRAMES:
        return f'{times[0]:.2f}, {times[1]:.2f}, …, {times[-1]:.2f}'
    return ', '.join(f'{time:.2f}' for time in times)
