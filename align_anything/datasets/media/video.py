"""Decoding videos: a few frames, upright, with the times at which they are shown."""

from __future__ import annotations

import math
import os
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from align_anything.core.errors import SampleError
from align_anything.core.types import Audio, Media, Video
from align_anything.datasets.media.audio import MAX_SECONDS, finish
from align_anything.datasets.media.containers import open_container, read_track
from align_anything.datasets.media.image import MAX_PIXELS, decode_image, to_bytes_per_channel
from align_anything.datasets.media.sampling import FPS, fitted, pick
from align_anything.datasets.media.sources import as_file, describe, make_media

IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg', '.webp', '.bmp', '.gif', '.tif', '.tiff')
WORTH_A_JUMP = 4
"""Frames between here and a keyframe from which on seeking is faster than decoding."""
HELD = 1
"""Packets that a frame may be made of, less one: two fields of an interlaced frame come as two."""


def decode_video(media: Media) -> Video:
    """Returns the picked frames of a video, of a folder of images, or of frames in memory.

    Options: `num_frames`, or `fps` with `min_frames` and `max_frames`; `max_frame_pixels` and `max_video_pixels`, to
    which frames are scaled down; `audio` for the audio track too, with the options of `decode_audio`. Frames that have
    no clock count as sampled at `fps` already.

    Raises:
        SampleError: nothing readable, no frames, ends early, frames too large or of different sizes.
    """
    if isinstance(media.source, str) and os.path.isdir(media.source):
        return _from_frames(_listed(media, media.source), None, media)
    source = as_file(media)
    if isinstance(source, (str, bytes, bytearray)):
        return _from_video(source, media)
    if isinstance(source, Video):
        return source
    if isinstance(source, Mapping) and source.get('frames') is not None:
        return _from_frames(source['frames'], source.get('fps'), media)
    return _from_frames(source, None, media)


def video_size(media: Media) -> tuple[int, int, int]:
    """Returns `(frames, height, width)` of what `decode_video` gives; of a file one frame is decoded, for its rotation.

    Raises as `decode_video` does, as far as that tells.
    """
    is_folder = isinstance(media.source, str) and os.path.isdir(media.source)
    source = None if is_folder else as_file(media)
    if not isinstance(source, (str, bytes, bytearray)):
        return decode_video(media).frames.shape[:3]
    with open_container(source, media) as container:
        index = read_index(container, video_stream(container, media), media)
    _, picked, _ = _picked(index, media)
    first = frames_at(source, media, index, index.stamps[:1], len(picked))[index.stamps[0]]
    return len(picked), *first.shape[:2]


@dataclass(frozen=True)
class FrameIndex:
    """The frames of a video in the order they are shown, as its packets tell.

    Attributes:
        stamps: presentation times in units of the stream's clock, ascending.
        keys: those of the frames that can be sought.
        duration: seconds from the first frame's start to the last one's end.
        unit: seconds of one unit of the clock.
    """

    stamps: list[int]
    keys: list[int]
    duration: float
    unit: float


def _from_video(source: str | bytes | bytearray, media: Media) -> Video:
    with open_container(source, media) as container:
        index = read_index(container, video_stream(container, media), media)
    times, picked, timestamps = _picked(index, media)
    wanted = [index.stamps[number] for number in dict.fromkeys(picked.tolist())]
    found = frames_at(source, media, index, wanted, len(picked))
    frames = numpy.stack([found[index.stamps[number]] for number in picked.tolist()])
    audio = _track(source, media, index.stamps[0] * index.unit) if media.options.get('audio') else None
    return Video(frames, timestamps, len(times) / index.duration, audio)


def _picked(index: FrameIndex, media: Media) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]:
    """When each frame is shown, the numbers of those to take, and their timestamps."""
    times = (numpy.array(index.stamps, dtype=numpy.float64) - index.stamps[0]) * index.unit
    return times, *pick(times, index.duration, media.options)


def video_stream(container: Any, media: Media) -> Any:
    """Returns the video track of an open container. Raises SampleError for none, and one with frames too large."""
    from av.stream import Disposition

    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        raise SampleError(f'{describe(media)} has no video track, only audio.')
    stream = streams[0]
    if stream.width * stream.height > MAX_PIXELS:
        raise SampleError(
            f'{describe(media)} is too large: {stream.width} x {stream.height} is over {MAX_PIXELS} pixels.'
        )
    # Workers decode side by side already.
    stream.codec_context.thread_count = 1
    return stream


def read_index(container: Any, stream: Any, media: Media) -> FrameIndex:
    """Returns the frames of a track, none of them decoded. Raises SampleError for none, and a file that ends early."""
    lengths: dict[int, int] = {}
    keys: list[int] = []
    packets, truncated = 0, False
    for packet in container.demux(stream):
        if not packet.size:
            continue
        packets += 1
        truncated = packet.is_corrupt
        if packet.is_discard:
            continue
        stamp = packet.pts if packet.pts is not None else packet.dts
        if stamp is None:
            raise SampleError(f'{describe(media)} has frames without times: convert it to mp4.')
        lengths[stamp] = packet.duration or 0
        if packet.is_keyframe:
            keys.append(stamp)
    # What is shown before the first keyframe refers to frames that are not there.
    stamps = sorted(stamp for stamp in lengths if not keys or stamp >= min(keys))
    if not stamps:
        raise SampleError(f'{describe(media)} has no frames.')
    unit = float(stream.time_base)
    usual = float(numpy.median(numpy.diff(stamps))) if len(stamps) > 1 else 1 / (FPS * unit)
    duration = (stamps[-1] - stamps[0] + (lengths[stamps[-1]] or usual)) * unit
    if truncated or packets < _declared_packets(container, stream) or duration < 0.9 * _declared_seconds(stream) - 0.1:
        raise SampleError(f'{describe(media)} ends early: it is truncated or damaged.')
    return FrameIndex(stamps, sorted(keys), duration, unit)


def _declared_packets(container: Any, stream: Any) -> int:
    # Other formats write something else into that field, such as a length.
    return stream.frames if container.format.name.startswith('mov') else 0


def _declared_seconds(stream: Any) -> float:
    written = re.fullmatch(r'(\d+):(\d+):(\d+\.?\d*)', stream.metadata.get('DURATION', ''))
    if written is None:
        return 0.0
    hours, minutes, seconds = (float(number) for number in written.groups())
    return 3600 * hours + 60 * minutes + seconds


class _Lost(Exception):
    """The frame that was wanted did not come."""


def frames_at(
    source: str | bytes | bytearray, media: Media, index: FrameIndex, wanted: Sequence[int], count: int
) -> dict[int, numpy.ndarray]:
    """Returns the frame shown at each of the times `wanted`, ascending; `count` frames share the pixel budget."""
    for keys in (index.keys, []):
        with open_container(source, media) as container:
            stream = video_stream(container, media)
            try:
                shown = _Shown(container, stream, index.stamps, keys)
                return {stamp: _picture(shown.at(stamp), count, media) for stamp in wanted}
            except _Lost:
                # The index of the file is wrong: decode it from the beginning, without jumps.
                continue
    raise SampleError(f'{describe(media)} is damaged: its frames do not come at the times that they should.')


class _Shown:
    """Decodes forward to the frame shown at a time, over the nearest keyframe where that is shorter."""

    def __init__(self, container: Any, stream: Any, stamps: list[int], keys: list[int]) -> None:
        self._container, self._stream, self._stamps, self._keys = container, stream, stamps, keys
        self._coming = self._decode()
        self._next: Any = next(self._coming, None)
        self._frame: Any = None

    def at(self, stamp: int) -> Any:
        """Returns the last frame that begins at or before `stamp`; times must not go back."""
        self._jump(stamp)
        while self._next is not None and self._next.pts <= stamp:
            self._frame, self._next = self._next, next(self._coming, None)
            if self._frame.pts == stamp:
                break
        if self._frame is None or self._number(stamp) - self._number(self._frame.pts) > HELD:
            raise _Lost
        return self._frame

    def _jump(self, stamp: int) -> None:
        at = bisect_right(self._keys, stamp) - 1
        here = self._next.pts if self._next is not None else self._stamps[-1]
        if at < 0 or self._number(self._keys[at]) - self._number(here) < WORTH_A_JUMP:
            return
        self._container.seek(self._keys[at], stream=self._stream)
        self._coming = self._decode()
        self._frame, self._next = None, next(self._coming, None)

    def _number(self, stamp: int) -> int:
        return bisect_left(self._stamps, stamp)

    def _decode(self) -> Iterator[Any]:
        return (frame for frame in self._container.decode(self._stream) if frame.pts is not None)


def _picture(frame: Any, count: int, media: Media) -> numpy.ndarray:
    if frame.is_corrupt:
        raise SampleError(f'{describe(media)} has a damaged frame at {frame.time:.2f} s.')
    width, height = fitted(frame.width, frame.height, count, media.options)
    pixels = frame.to_ndarray(format='rgb24', width=width, height=height, interpolation='BICUBIC')
    return numpy.ascontiguousarray(numpy.rot90(pixels, round(frame.rotation / 90) % 4))


def _track(source: str | bytes | bytearray, media: Media, since: float) -> Audio | None:
    with open_container(source, media) as container:
        if not container.streams.audio:
            return None
    seconds = media.options.get('max_seconds') or math.inf
    samples, rate = read_track(source, media, min(seconds, MAX_SECONDS + 1), since)
    return finish(samples, rate, media, seconds)


def _listed(media: Media, folder: str) -> list[str]:
    def order(path: Path) -> list[Any]:
        # frame10 comes after frame9.
        return [int(word) if word.isdigit() else word for word in re.split(r'(\d+)', path.name)]

    found = [path for path in Path(folder).iterdir() if path.suffix.lower() in IMAGE_SUFFIXES]
    if not found:
        raise SampleError(f'{describe(media)} is a folder without images ({", ".join(IMAGE_SUFFIXES)}).')
    return [str(path) for path in sorted(found, key=order)]


def _from_frames(source: Any, fps: float | None, media: Media) -> Video:
    """Returns frames in memory, `(frames, height, width[, channels])` or a list of images, as a video."""
    if isinstance(source, str):
        source = _listed(media, source)
    are_images = isinstance(source, (list, tuple)) and source and not isinstance(source[0], (list, tuple))
    if not are_images:
        if not isinstance(source, (list, tuple, numpy.ndarray)):
            raise SampleError(f'{describe(media)} is nothing that a video can be made from.')
        source = to_bytes_per_channel(_channels_last(numpy.asarray(source), media), media)
    if len(source) == 0:
        raise SampleError(f'{describe(media)} has no frames.')
    rate = float(fps or media.options.get('fps') or FPS)
    times = numpy.arange(len(source)) / rate
    picked, timestamps = pick(times, len(source) / rate, media.options)
    images = [_image(source[number], media) for number in picked.tolist()]
    sizes = {image.size for image in images}
    if len(sizes) > 1:
        raise SampleError(f'{describe(media)} has frames of different sizes: {sorted(sizes)}.')
    size = fitted(*images[0].size, len(images), media.options)
    frames = numpy.stack([numpy.asarray(image if image.size == size else image.resize(size)) for image in images])
    return Video(frames, timestamps, rate)


def _image(source: Any, media: Media) -> Any:
    return decode_image(make_media('image', source, options={'allow_urls': media.options.get('allow_urls')}))


def _channels_last(array: numpy.ndarray, media: Media) -> numpy.ndarray:
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim == 4 and array.shape[-1] not in (1, 3, 4) and array.shape[1] in (1, 3, 4):
        array = array.transpose(0, 2, 3, 1)
    if array.ndim != 4 or array.shape[-1] not in (1, 3, 4):
        raise SampleError(f'{describe(media)} of shape {array.shape} is no video (frames, height, width, channels).')
    return array
