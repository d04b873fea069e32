"""Images that are frames of a video file or of an HDF5 array: all that a row shows of a file are read in one pass."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy

from align_anything.core.errors import DataError, SampleError
from align_anything.core.types import Media
from align_anything.datasets.media.containers import open_container
from align_anything.datasets.media.sources import file_of
from align_anything.datasets.media.video import FrameIndex, frames_at, read_index, video_stream

VIDEO_KEYS = ('video', 'frame', 'time', 'tolerance', 'frames')
HDF5_KEYS = ('hdf5', 'dataset', 'frame')
KNOWN_FILES = 16
"""Indices of videos that a process keeps: demuxing a large file for every row would read all of it each time."""


def read_frames(media: Sequence[Media]) -> list[Any]:
    """Returns the frames of one file as PIL images, upright as the file says, in RGB; the file is read once.

    Raises:
        SampleError: no such file, no such frame, none near enough to a time, or a damaged file.
        DataError: an HDF5 file, and no h5py to read it with.
    """
    from PIL import Image

    sources = [_checked(medium) for medium in media]
    path, first = file_of(sources[0]), media[0]
    _require_file(path, first)
    if sources[0].get('video') is None:
        arrays = _of_arrays(path, sources, media)
    else:
        index = _index_of(path)
        numbers = [_number(source, index, medium) for source, medium in zip(sources, media, strict=True)]
        stamps = sorted({index.stamps[number] for number in numbers})
        found = frames_at(path, Media('video', path), index, stamps, 1)
        arrays = [found[index.stamps[number]] for number in numbers]
    made = {id(array): Image.fromarray(array) for array in arrays}
    return [made[id(array)] for array in arrays]


def frame_size(media: Media) -> tuple[int, int]:
    """Returns `(height, width)` of a frame as `read_frames` gives it; the first frame of a file tells, once."""
    source = _checked(media)
    path = file_of(source)
    _require_file(path, media)
    if source.get('video') is not None:
        return _video_size(path, *_version(path))
    with open_hdf5(path) as file:
        shape = _array(file, source).shape
    return (shape[1], shape[2]) if len(shape) == 4 else read_frames([media])[0].size[::-1]


def number_of_frames(path: str) -> int:
    """Returns how many frames a video file has, by its index alone. Raises SampleError as `read_frames` does."""
    _require_file(path, Media('video', path))
    return len(_index_of(path).stamps)


@contextmanager
def open_hdf5(path: str) -> Iterator[Any]:
    """Opens an HDF5 file to read. Raises DataError where h5py is not installed, SampleError for a file that is none."""
    try:
        import h5py
    except ImportError as error:
        raise DataError(f"'{path}' is HDF5, which needs h5py: pip install 'align-anything[robots]'.") from error
    try:
        opened = h5py.File(path, 'r')
    except OSError as error:
        told = 'does not exist' if not os.path.exists(path) else f'cannot be read as HDF5 ({error})'
        raise SampleError(f"'{path}' {told}.") from error
    with opened as file:
        yield file


def _checked(media: Media) -> Mapping[str, Any]:
    source = {key: value for key, value in media.source.items() if value is not None}
    known = VIDEO_KEYS if 'video' in source else HDF5_KEYS
    unknown = sorted(str(key) for key in source if key not in known)
    if unknown:
        raise SampleError(f'the frame of a file has {", ".join(unknown)}. Keys are: {", ".join(known)}.')
    if 'hdf5' in source and 'dataset' not in source:
        raise SampleError(f"the frame of '{source['hdf5']}' does not say which 'dataset' of the file it is in.")
    at = [key for key in ('frame', 'time') if key in source]
    if len(at) != 1:
        raise SampleError(f"the frame of '{file_of(source)}' should have a frame or a time, and one of them.")
    value = source[at[0]]
    wanted = (int,) if at[0] == 'frame' else (int, float)
    if isinstance(value, bool) or not isinstance(value, wanted):
        raise SampleError(f"the {at[0]} of a frame of '{file_of(source)}' is {value!r}, not a number.")
    return source


def _require_file(path: str, media: Media) -> None:
    if not os.path.isfile(path):
        kind = 'video' if media.kind == 'video' or media.source.get('video') is not None else 'file'
        raise SampleError(f"the {kind} '{path}' does not exist.")
    if os.path.getsize(path) == 0:
        raise SampleError(f"'{path}' is empty (0 bytes).")


def _version(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_mtime_ns, status.st_size


def _index_of(path: str) -> FrameIndex:
    return _read_index(path, *_version(path))


@lru_cache(maxsize=KNOWN_FILES)
def _read_index(path: str, *version: int) -> FrameIndex:
    media = Media('video', path)
    with open_container(path, media) as container:
        return read_index(container, video_stream(container, media), media)


@lru_cache(maxsize=KNOWN_FILES)
def _video_size(path: str, *version: int) -> tuple[int, int]:
    # Decoded, because only a frame tells how it is turned.
    index = _index_of(path)
    (picture,) = frames_at(path, Media('video', path), index, index.stamps[:1], 1).values()
    return picture.shape[0], picture.shape[1]


def _number(source: Mapping[str, Any], index: FrameIndex, media: Media) -> int:
    """The number of the frame that a source means. Raises SampleError where there is none."""
    count = len(index.stamps)
    wanted = source.get('frames')
    if wanted is not None and count not in wanted:
        raise SampleError(
            f"'{file_of(source)}' has {count} frames, but each of the {wanted[0]} actions of the episode followed one "
            'of them, and one more may show the end. It is of another episode, or was recorded at another rate.'
        )
    if 'frame' in source:
        number = source['frame']
        if not 0 <= number < count:
            raise SampleError(f"'{file_of(source)}' has {count} frames, 0 to {count - 1}, and no frame {number}.")
        return number
    times = (numpy.array(index.stamps, dtype=numpy.float64) - index.stamps[0]) * index.unit
    nearest = int(numpy.abs(times - source['time']).argmin())
    usual = float(numpy.median(numpy.diff(times))) if count > 1 else index.duration
    # Half a frame: nearer than that to a frame is nearer than to any other one.
    tolerance = source.get('tolerance', usual / 2)
    off = float(times[nearest]) - source['time']
    if abs(off) > tolerance + 1e-9:
        raise SampleError(
            f"'{file_of(source)}' shows no frame within {tolerance:.4g} s of {source['time']:.4f} s: the nearest is "
            f'frame {nearest} at {times[nearest]:.4f} s, {abs(off):.4f} s {"later" if off > 0 else "earlier"}; the '
            f'last one is at {times[-1]:.4f} s. The clock of the rows and that of the video have drifted apart: give '
            'the frames by their numbers, or a larger tolerance.'
        )
    return nearest


def _of_arrays(path: str, sources: Sequence[Mapping[str, Any]], media: Sequence[Media]) -> list[numpy.ndarray]:
    with open_hdf5(path) as file:
        return [_picture(_array(file, source), source) for source in sources]


def _array(file: Any, source: Mapping[str, Any]) -> Any:
    name = source['dataset']
    if name not in file:
        raise SampleError(f"'{file_of(source)}' has no dataset '{name}'.")
    return file[name]


def _picture(array: Any, source: Mapping[str, Any]) -> numpy.ndarray:
    """A picture of an array `(frames, height, width, 3)`, or of encoded pictures `(frames, bytes)`."""
    from PIL import Image

    number = source['frame']
    if not 0 <= number < len(array):
        raise SampleError(f"'{source['dataset']}' of '{file_of(source)}' has {len(array)} frames, and no {number}.")
    value = numpy.asarray(array[number])
    if value.ndim == 1 and value.dtype == numpy.uint8:
        # Padded to the longest of them, which decoders pass over.
        return numpy.asarray(Image.open(io.BytesIO(value.tobytes())).convert('RGB'))
    if value.ndim != 3 or value.shape[-1] != 3 or value.dtype != numpy.uint8:
        raise SampleError(
            f"'{source['dataset']}' of '{file_of(source)}' holds {value.dtype} of shape {value.shape}, no pictures "
            '(height, width, 3) of uint8.'
        )
    return value
