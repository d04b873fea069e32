"""Audio and videos made on the spot."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy

SIZE = (64, 48)


def tone(seconds: float, rate: int = 16000, hertz: float = 440.0) -> numpy.ndarray:
    """A sine of amplitude 0.5, `(samples,)` float32."""
    return (0.5 * numpy.sin(2 * numpy.pi * hertz * numpy.arange(round(seconds * rate)) / rate)).astype(numpy.float32)


def sound(samples: numpy.ndarray, rate: int = 16000, kind: str = 'WAV', subtype: str | None = None) -> bytes:
    """The samples as a file."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def grey(level: int, size: tuple[int, int] = SIZE) -> numpy.ndarray:
    """One frame, `(height, width, 3)`."""
    return numpy.full((size[1], size[0], 3), level, numpy.uint8)


def clip(
    frames: Sequence[Any],
    kind: str = 'mp4',
    codec: str = 'libx264',
    pixels: str = 'yuv420p',
    *,
    rate: int = 10,
    milliseconds: Sequence[int] | None = None,
    rotation: int = 0,
    keyframes: int = 5,
    audio: numpy.ndarray | None = None,
    options: dict[str, str] | None = None,
) -> bytes:
    """The frames (arrays, or grey levels) as a file.

    `milliseconds` is when each is shown, and `rotation` by how many degrees it is to be turned counter-clockwise.
    `audio` is a track of 16 kHz; every `keyframes`-th frame can be sought.
    """
    import av

    pictures = [grey(frame) if isinstance(frame, int) else frame for frame in frames]
    times = milliseconds or [round(1000 * index / rate) for index in range(len(pictures))]
    buffer = io.BytesIO()
    with av.open(buffer, 'w', format={'mkv': 'matroska', 'ts': 'mpegts'}.get(kind, kind)) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pixels
        stream.options = {'g': str(keyframes), **(options or {})}
        stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        track = None if audio is None else container.add_stream('aac', rate=16000, layout='mono')
        for time, picture in zip(times, pictures, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format='rgb24')
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if track is not None:
            for start in range(0, len(audio), 1024):
                block = av.AudioFrame.from_ndarray(audio[None, start : start + 1024], format='fltp', layout='mono')
                block.sample_rate, block.pts = 16000, start
                container.mux(track.encode(block))
            container.mux(track.encode())
    return buffer.getvalue()
